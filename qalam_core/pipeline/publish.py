"""Publishing: the artifacts of a build become a run that people can read, and on a pass the champion.
Takes runs, the recipe and the artifacts; gives the run's folder: package, tokenizer, reports, run.json.
It does not know how any of them was made.

The published package's card is written here, because its figures are measured on the exported package: weights, code
and vocabulary are the export's to the byte, and the manifest holds the digest of the published card.
"""

from __future__ import annotations

import json
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
from qalam_core.files import digest
from qalam_core.package.write import replace_card
from qalam_core.pipeline.evaluate import measured
from qalam_core.pipeline.export import PACKAGE
from qalam_core.pipeline.gate import GateFacts, verdict_of
from qalam_core.pipeline.vocab import TOKENIZER
from qalam_core.recipe import Recipe
from qalam_core.reports.card import model_card
from qalam_core.reports.markdown import markdown
from qalam_core.runs import Promotion, RunRecord, Runs, TrainFacts
from qalam_core.store import Artifact

__all__ = ["Published", "publish", "render_page"]


@dataclass(frozen=True)
class Published:
    """What a build ends with."""

    run: str
    folder: Path
    record: RunRecord
    champion: bool  # whether the run is the champion now
    promoted: bool  # whether this very call made it champion
    artifacts: tuple[Artifact, ...]  # of every stage, in order

    @property
    def verdict(self) -> Verdict:
        """The gate's decision."""
        return self.record.verdict

    @property
    def cached(self) -> bool:
        """Whether nothing had to be built."""
        return all(artifact.cached for artifact in self.artifacts)


def publish(runs: Runs, recipe: Recipe, artifacts: Sequence[Artifact]) -> Published:
    """All artifacts of a build -> a run, which becomes champion on a pass.

    A run that was champion before is not promoted again: a rollback stands until a new model wins.
    """
    last = {artifact.stage: artifact for artifact in artifacts}
    verdict, created = verdict_of(last["gate"]), datetime.now(UTC).isoformat(timespec="seconds")
    run = runs.run_id(recipe.name, digest({"package": last["export"].digest, "verdict": last["gate"].digest}))
    runs.publish(run, lambda folder: _fill(folder, run, recipe, artifacts, created))
    promoted = verdict.passed and run not in {promotion.run for promotion in runs.promotions(recipe.name)}
    if promoted:
        runs.promote(recipe.name, Promotion(run=run, when=created, why="passed the gate", who="gate"))
    champion = runs.champion(recipe.name) == run
    return Published(run, runs.folder(run), runs.record(run), champion, promoted, tuple(artifacts))


def _fill(folder: Path, run: str, recipe: Recipe, artifacts: Sequence[Artifact], created: str) -> None:
    """Write a run's folder."""
    from qalam_core.reports.page import page  # brings jinja2 and matplotlib, which a cached build does without

    digests: dict[str, tuple[str, ...]] = {}
    timings: dict[str, float] = {}
    last: dict[str, Artifact] = {}
    for artifact in artifacts:
        digests[artifact.stage] = (*digests.get(artifact.stage, ()), artifact.digest)
        timings[artifact.stage] = round(timings.get(artifact.stage, 0.0) + artifact.seconds, 3)
        last[artifact.stage] = artifact
    package, evaluation = last["export"].path / PACKAGE, last["evaluate"]
    corpus, training = last["prepare"].facts(CorpusFacts), last["train"].facts(TrainFacts)
    report, budgets = measured(evaluation)
    record = RunRecord(
        created=created,
        recipe=recipe,
        artifacts=digests,
        timings=timings,
        incumbent=last["gate"].facts(GateFacts).incumbent,
        parent=training.warm_start.run if training.warm_start else "",
        verdict=verdict_of(last["gate"]),
        bits_per_byte=report.bits_per_byte,
        package_mb=budgets.package_mb,
        parameters=training.parameters,
        code=metadata.version("al-qalam"),
        machine=_machine(),
        dependencies=_dependencies(),
    )
    (folder / PACKAGE).mkdir()
    for file in package.iterdir():  # not copytree, whose error has no errno for the store
        shutil.copy(file, folder / PACKAGE)
    replace_card(folder / PACKAGE, model_card(recipe, corpus, training, report))
    shutil.copy(package / TOKENIZER, folder)
    shutil.copy(evaluation.path / "report.json", folder)
    text = markdown(recipe, report, budgets, record.verdict, corpus, timings)
    (folder / "report.md").write_text(text, encoding="utf-8")
    (folder / "run.json").write_bytes(record.to_json())
    html = page(run, record, report, corpus, training, _metrics(last["train"].path))
    (folder / "report.html").write_text(html, encoding="utf-8")


def render_page(runs: Runs, run: str) -> str:
    """The HTML report of a run, rendered again; what was garbage-collected since is left out, and said."""
    from qalam_core.reports.page import page

    record, store = runs.record(run), runs.store

    def kept(stage: str) -> Artifact | None:
        key = record.artifacts[stage][0]
        folder = store.artifact_folder(stage, key)
        return Artifact(stage, key, folder) if (folder / "manifest.json").is_file() else None

    corpus, training = kept("prepare"), kept("train")
    return page(
        run,
        record,
        runs.report(run),
        corpus.facts(CorpusFacts) if corpus else None,
        training.facts(TrainFacts) if training else None,
        _metrics(training.path) if training else (),
    )


def _metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _machine() -> dict[str, str]:
    return {"system": platform.system(), "processor": platform.machine(), "cores": str(os.cpu_count()),
            "python": platform.python_version()}  # fmt: skip


def _dependencies() -> dict[str, str]:
    names = ("torch", "numpy", "pyarrow", "tokenizers", "datasets", "safetensors", "pydantic", "prefect")
    return {name: metadata.version(name) for name in names}
