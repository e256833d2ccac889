"""Stage: the report against the recipe's requirements, the champion, and the champions before it -> verdict.json."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from qalam_core.arabic import NORMALISATIONS
from qalam_core.corpus.fingerprints import Fingerprints
from qalam_core.corpus.splits import read_texts
from qalam_core.errors import StoreError
from qalam_core.evaluation.comparison import MAX_ANCHORS, Anchor, Champion, Remeasured, comparable
from qalam_core.evaluation.gate import decide
from qalam_core.evaluation.results import Report, Verdict
from qalam_core.pipeline.evaluate import measured
from qalam_core.pipeline.export import PACKAGE
from qalam_core.pipeline.prepare import shards_of
from qalam_core.pipeline.stage import UNHASHED, Stage
from qalam_core.progress import Progress
from qalam_core.recipe import Frozen, Recipe, Requirements
from qalam_core.runs import RunRecord, Runs
from qalam_core.store import Artifact, ArtifactFile


class GateFacts(Frozen):
    """The decision, and the runs that the model was compared with."""

    passed: bool
    incumbent: str  # "" for none
    anchors: tuple[str, ...]  # earlier champions, newest first


@dataclass(frozen=True)
class Incumbent:
    """A champion that a model is compared with."""

    run: str
    digest: str  # of its verdict, which depends on everything that is read of it
    runs: Runs

    @classmethod
    def of(cls, runs: Runs, run: str) -> Incumbent:
        """A run that a model is compared with. Raises StoreError."""
        return cls(run, runs.record(run).artifacts["gate"][0], runs)

    @cached_property
    def record(self) -> RunRecord:
        """Its run.json. Raises StoreError."""
        return self.runs.record(self.run)

    @property
    def seen(self) -> Artifact | None:
        """What it and its ancestors have read, if that is in the store."""
        found = [self.runs.store.reference("seen", key) for key in self.record.artifacts.get("seen", ())]
        return found[0] if found and found[0].exists() else None

    @property
    def level(self) -> float | None:
        """Of its comparison with the champion before it."""
        comparison = self.record.verdict.comparison
        return comparison.level if comparison else None

    def report(self) -> Report:
        """Its evaluation. Raises StoreError."""
        try:
            return self.runs.report(self.run)
        except StoreError as error:
            raise StoreError(f"{error}; it is a champion's, and the gate compares with it") from None


@dataclass(frozen=True)
class Incumbents:
    """The champion, and the earlier champions, that a model is compared with."""

    champion: Incumbent | None
    anchors: tuple[Incumbent, ...] = ()


def incumbents(recipe: Recipe, evaluation: Artifact, runs: Runs) -> Incumbents:
    """Those of the history now.

    The champion is the newest one with another evaluation than this one, and the others are those before the first one
    with this evaluation, so that building a champion again finds the verdict that made it champion. Of several runs
    with the same evaluation, one counts.
    """
    history = [(run, record.artifacts) for run, record in runs.champions(recipe.name)]  # newest first
    evaluations = [artifacts["evaluate"][0] for _, artifacts in history]
    found: dict[str, Incumbent] = {}
    first = max((place for place, digest in enumerate(evaluations) if digest == evaluation.digest), default=-1)
    for place, ((run, artifacts), digest) in enumerate(zip(history, evaluations, strict=True)):
        if digest != evaluation.digest and (place > first or not found):
            found.setdefault(digest, Incumbent(run, artifacts["gate"][0], runs))
    champion, *anchors = found.values() or (None,)
    return Incumbents(champion, tuple(one for one in anchors if one)[:MAX_ANCHORS])


@dataclass(frozen=True)
class Gate(Stage):
    """Decides whether the model may become champion."""

    name = "gate"
    version = 4
    unit = "tokens"

    settings: Requirements
    evaluation: Artifact
    test: tuple[ArtifactFile, ...]  # shards
    incumbent: Incumbent | None
    seen: Artifact | None  # what the incumbent and its ancestors have read
    anchors: tuple[Incumbent, ...]
    device: str = field(default="auto", metadata=UNHASHED)

    @classmethod
    def of(cls, recipe: Recipe, evaluation: Artifact, corpus: Artifact, incumbents: Incumbents) -> Gate:
        """The stage for a model that was evaluated on the test split of `corpus`."""
        champion = incumbents.champion
        return cls(
            recipe.gate.narrowed(Requirements), evaluation, shards_of(corpus, "test") if champion else (), champion,
            champion.seen if champion else None, incumbents.anchors,
            "cpu" if recipe.train.device == "cpu" else "auto",
        )  # fmt: skip

    def run(self, out: Path, progress: Progress) -> GateFacts:
        """Write verdict.json."""
        report, budgets = measured(self.evaluation)
        champion = self._champion(report, progress) if self.incumbent else None
        verdict = decide(report, budgets, self.settings, champion, self._anchors())
        (out / "verdict.json").write_text(verdict.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return GateFacts(
            passed=verdict.passed, incumbent=self.incumbent.run if self.incumbent else "",
            anchors=tuple(anchor.run for anchor in self.anchors),
        )  # fmt: skip

    def _champion(self, report: Report, progress: Progress) -> Champion:
        assert self.incumbent
        gate = self.incumbent.record.recipe.gate.narrowed(Requirements)
        champion = Champion(self.incumbent.report(), self.incumbent.level, gate)
        if comparable(report, champion.report):
            return champion
        return replace(champion, again=self._measured_again(report, progress))

    def _measured_again(self, report: Report, progress: Progress) -> Remeasured:
        """The champion's package on the documents of this report."""
        from qalam_core.evaluation.remeasure import of_report, remeasure  # imports torch
        from qalam_core.training.hardware import choose_device

        assert self.incumbent
        # of texts that were normalised otherwise, the champion would be measured on what it was not made for
        theirs = self.incumbent.record.recipe.corpus.normalisation
        if self.evaluation.manifest.settings["normalisation"] != [list(rule) for rule in NORMALISATIONS[theirs]]:
            return Remeasured(problem=f"the champion's corpus was normalised as {theirs}, and this one otherwise")
        seen = Fingerprints.load(self.seen.path) if self.seen else None
        texts = of_report(report, (
            text for shard in self.test for batch in read_texts(shard.path) for text in batch.column("text").to_pylist()
        ))  # fmt: skip
        folder = self.incumbent.runs.folder(self.incumbent.run) / PACKAGE
        return remeasure(folder, texts, seen, choose_device(self.device), progress)

    def _anchors(self) -> Iterator[Anchor]:
        """One report at a time."""
        return (Anchor(anchor.report(), anchor.level) for anchor in self.anchors)


def verdict_of(decision: Artifact) -> Verdict:
    """The verdict that a gate stage wrote."""
    return Verdict.model_validate_json((decision.path / "verdict.json").read_bytes())
