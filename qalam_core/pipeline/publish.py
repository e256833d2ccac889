"""Publishing: the artifacts of a build become a run, and the champion if they passed the gate.

The figures of the published package's card are measured on the exported package. So only the card, and its digest in
the manifest, differ between the two.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from qalam_core.corpus.prepare import CorpusFacts
from qalam_core.evaluation.results import Verdict
from qalam_core.files import digest, sha256_file
from qalam_core.package.write import replace_card
from qalam_core.pipeline.estimate import built
from qalam_core.pipeline.evaluate import measured
from qalam_core.pipeline.export import PACKAGE, Export, ExportFacts
from qalam_core.pipeline.gate import GateFacts, verdict_of
from qalam_core.pipeline.propose import PROVENANCE, Candidate, Propose
from qalam_core.pipeline.review import REVIEW, Side, review, written_review
from qalam_core.pipeline.vocab import TOKENIZER
from qalam_core.recipe import Recipe
from qalam_core.reports.card import model_card
from qalam_core.reports.chain import chain_of
from qalam_core.reports.markdown import markdown
from qalam_core.reports.tables import NO_CHAMPION
from qalam_core.review.summary import Review
from qalam_core.runs import RECORDED, ProposedFacts, RunRecord, Runs, SeenFacts, TrainFacts, exceptions
from qalam_core.store import Artifact
from qalam_core.training.spec import METRICS

log = logging.getLogger(__name__)

REVIEW_PAGE = "review.html"

DEPENDENCIES = ("torch", "numpy", "pyarrow", "tokenizers", "datasets", "safetensors", "pydantic", "prefect")
"""Distributions whose versions are recorded."""


@dataclass(frozen=True)
class Published:
    """What a build ends with."""

    run: str
    folder: Path
    record: RunRecord
    champion: bool  # whether the run is the champion now
    promoted: bool  # whether this call made it champion
    held: str  # why a run that passed the gate waits for a person, "" where it does not
    same_as: str  # the champion, where another run than this one has made the same model champion; "" otherwise
    artifacts: tuple[Artifact, ...]  # of every stage, in order

    @property
    def verdict(self) -> Verdict:
        """The gate's decision."""
        return self.record.verdict

    @property
    def waits(self) -> bool:
        """Whether the gate found no fault, and a person must decide."""
        needed = exceptions(self.verdict)
        return bool(needed) and "refused" not in needed

    @property
    def decision(self) -> str:
        """What became of the run, in one sentence: "passed", or why it was not promoted, and what a person can do."""
        if self.verdict.passed:
            same = f"passed: the same model as {self.same_as}, which is the champion" if self.same_as else "passed"
            return f"passed, but not promoted: {self.held}" if self.held else same
        reasons = " ".join(self.verdict.reasons())
        if not self.waits:
            return f"the gate refused: {reasons}"
        flags = " ".join(f"--accept-{name}" for name in exceptions(self.verdict))
        return f"waits for a person (qalam promote {self.run} {flags} --why REASON): {reasons}"

    @property
    def review(self) -> Review | str:
        """The review against the champion, or why there is none."""
        return written_review(self.folder, self.record)

    @property
    def cached(self) -> bool:
        """Whether nothing had to be built."""
        return all(artifact.cached for artifact in self.artifacts)


def publish(
    runs: Runs, recipe: Recipe, artifacts: Sequence[Artifact], candidate: Candidate | None = None
) -> Published:  # fmt: skip
    """All artifacts of a build, or of a proposal -> a run, which becomes champion if it passed the gate (Runs.offer),
    unless the candidate is only to be judged."""
    run = create_run(runs, recipe, artifacts, candidate)
    record, before = runs.record(run), runs.champion(recipe.name)
    held = ""
    if record.verdict.passed and candidate and candidate.only_judged:
        if before is None or runs.model(before) != runs.model(run):
            held = f"it was only to be judged; `qalam promote {run}` makes it champion"
    elif record.verdict.passed:
        held = runs.offer(recipe.name, run, _now())
    champion = runs.champion(recipe.name)
    same = champion if record.verdict.passed and champion and champion != run and not held else ""
    return Published(
        run, runs.folder(run), record, champion == run, before != run == champion, held, same, tuple(artifacts)
    )


def create_run(runs: Runs, recipe: Recipe, artifacts: Sequence[Artifact], candidate: Candidate | None = None) -> str:
    """All artifacts of a build, or of a proposal -> the id of the run, which is created if it does not exist."""
    last = {artifact.stage: artifact for artifact in artifacts}
    package = last[Propose.name if candidate else Export.name].digest
    run = runs.run_id(recipe.name, digest({"package": package, "verdict": last["gate"].digest}))
    runs.publish(run, lambda folder: _fill(folder, runs, run, recipe, artifacts, candidate, _now()))
    return run


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _fill(
    folder: Path, runs: Runs, run: str, recipe: Recipe, artifacts: Sequence[Artifact], candidate: Candidate | None,
    created: str,
) -> None:  # fmt: skip
    """Write a run's folder."""
    from qalam_core.reports.page import page  # imports matplotlib, which a cached build does not need

    by_stage: dict[str, list[Artifact]] = {}
    for artifact in artifacts:
        by_stage.setdefault(artifact.stage, []).append(artifact)
    last = {stage: made[-1] for stage, made in by_stage.items()}
    corpus, gate = last["prepare"].facts(CorpusFacts), last["gate"].facts(GateFacts)
    decision, evaluation = runs.store.here((last["gate"], last["evaluate"]))
    package = runs.store.here(last[Propose.name if candidate else Export.name]).path / PACKAGE
    made: TrainFacts | ProposedFacts
    provenance: dict[str, str] = {}
    if candidate:
        made = last[Propose.name].facts(ProposedFacts)
        seen, lineage, kept, proposal = candidate.read, candidate.lineage, candidate.kept, candidate.proposal
        origin = f"run {lineage[0].run}, package {lineage[0].package}" if lineage else "unknown"
        provenance = {PROVENANCE: last[Propose.name].digest, "ancestors": f"{len(lineage)}", "initial_weights": origin}
        metrics = []
    else:
        made, facts = last["train"].facts(TrainFacts), last[Export.name].facts(ExportFacts)
        seen, lineage, kept, proposal = last["seen"].facts(SeenFacts), facts.lineage, facts.kept, None
        metrics = _metrics(runs.store.here(last["train"].file(METRICS)).path)
    report, budgets = measured(evaluation)
    (folder / PACKAGE).mkdir()
    for file in package.iterdir():  # not copytree, whose error has no errno for the store
        shutil.copy(file, folder / PACKAGE)
    card = model_card(recipe, corpus, made, lineage, seen, report, kept, proposal)
    replace_card(folder / PACKAGE, card, provenance)
    shutil.copy(package / TOKENIZER, folder)
    shutil.copy(evaluation.path / "report.json", folder)
    record = RunRecord(
        created=created,
        recipe=recipe,
        artifacts={stage: tuple(artifact.digest for artifact in made) for stage, made in by_stage.items()},
        timings={stage: round(sum(artifact.seconds for artifact in made), 3) for stage, made in by_stage.items()},
        built=built(artifacts),
        incumbent=gate.incumbent,
        anchors=gate.anchors,
        lineage=lineage,
        seen=seen,
        tokenizer=kept,
        proposal=proposal,
        verdict=verdict_of(decision),
        bits_per_byte=report.bits_per_byte,
        package_mb=budgets.package_mb,
        parameters=made.parameters,
        code=metadata.version("al-qalam"),
        machine={
            "system": platform.system(),
            "processor": platform.machine(),
            "cores": str(os.cpu_count()),
            "python": platform.python_version(),
        },
        dependencies={name: metadata.version(name) for name in DEPENDENCIES},
        files={name: sha256_file(folder / name) for name in RECORDED},
    )
    (folder / "run.json").write_bytes(record.to_json())
    chain, found = chain_of(runs, run, record, report), _review(folder, runs, run, record)
    read = made.sources if isinstance(made, TrainFacts) else {}
    text = markdown(run, record, report, budgets, corpus, chain, found, read)
    (folder / "report.md").write_text(text, encoding="utf-8")
    html = page(run, record, report, corpus, metrics, chain, found, read)
    (folder / "report.html").write_text(html, encoding="utf-8")


def _review(folder: Path, runs: Runs, run: str, record: RunRecord) -> Review | str:
    """Write the review against the champion; -> it, or why there is none.

    No stage: nothing is built from it, and a build does not fail by what its review finds missing.
    """
    if not record.incumbent:
        return NO_CHAMPION
    from qalam_core.reports.review import review_page  # a cached build needs no templates

    try:
        found = review(Side.recorded(runs, record.incumbent), Side(run, folder / PACKAGE, runs, run, record))
        html = review_page(found)
    except Exception as error:  # the model is built and judged, whatever is wrong with its review
        problem = f"The review against {record.incumbent} failed ({type(error).__name__}: {error})."
        log.warning("%s", problem, exc_info=True)
        return problem
    (folder / REVIEW).write_bytes(found.to_json())
    (folder / REVIEW_PAGE).write_text(html, encoding="utf-8")
    return found


def render_page(runs: Runs, run: str) -> str:
    """The HTML report of a run, rendered again; it omits what was garbage-collected, and says so."""
    from qalam_core.reports.page import page

    record, report = runs.record(run), runs.report(run)
    corpus = runs.store.reference("prepare", record.artifacts["prepare"][0])
    trained = [runs.store.reference("train", key) for key in record.artifacts.get("train", ())]
    return page(
        run, record, report,
        corpus.facts(CorpusFacts) if corpus.exists() else None,
        [line for training in trained if training.exists() for line in _metrics(training.path / METRICS)],
        chain_of(runs, run, record, report),
        written_review(runs.folder(run), record),
        next((training.facts(TrainFacts).sources for training in trained if training.exists()), {}),
    )  # fmt: skip


def _metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
