"""Stage: the report against the recipe's requirements, the champion, and the champions before it -> verdict.json."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from qalam_core.arabic import NORMALISATIONS
from qalam_core.corpus.fingerprints import Fingerprints
from qalam_core.corpus.splits import read_texts
from qalam_core.errors import DamagedError
from qalam_core.evaluation.comparison import MAX_ANCHORS, Anchor, Champion, Exchanged, Remeasured, comparable
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
        there = self.runs.store.manifests()
        found = [there.reference("seen", key) for key in self.record.artifacts.get("seen", ())]
        return found[0] if found and found[0].exists() else None

    @property
    def test(self) -> tuple[ArtifactFile, ...]:
        """The shards of its test split, if they are in the store."""
        (key,) = self.record.artifacts["prepare"]
        corpus = self.runs.store.manifests().reference("prepare", key)
        return shards_of(corpus, "test") if corpus.exists() else ()

    @property
    def package(self) -> Path:
        """The folder of its package. Raises DamagedError when it is not as it was published."""
        return self.runs.package_folder(self.run)

    @property
    def level(self) -> float | None:
        """Of its comparison with the champion before it."""
        comparison = self.record.verdict.comparison
        return comparison.level if comparison else None

    @property
    def levels(self) -> dict[str, float]:
        """Its level and those of the champions before it, newest first, by run; also of those that were deleted."""
        comparison = self.record.verdict.comparison
        return {self.run: self.level or 1.0, **(comparison.levels if comparison else {})}

    def report(self) -> Report:
        """Its evaluation. Raises StoreError."""
        try:
            return self.runs.report(self.run)
        except DamagedError as error:
            raise DamagedError(f"{error}; it is a champion's, and the gate compares with it") from None


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


class GateSettings(Requirements):
    """The limits of the gate's checks, and the shares of model tests that must pass, by their name."""

    shares: dict[str, float]


@dataclass(frozen=True)
class Gate(Stage):
    """Decides whether the model may become champion."""

    name = "gate"
    version = 8
    unit = "tokens"

    settings: GateSettings
    evaluation: Artifact
    package: Artifact
    test: tuple[ArtifactFile, ...]  # shards
    seen: Artifact | None  # what the model and its ancestors have read; None where that is not recorded
    incumbent: Incumbent | None
    incumbent_test: tuple[ArtifactFile, ...]
    incumbent_seen: Artifact | None
    anchors: tuple[Incumbent, ...]
    device: str = field(default="auto", metadata=UNHASHED)

    @classmethod
    def of(
        cls, recipe: Recipe, corpus: Artifact, seen: Artifact | None, package: Artifact, evaluation: Artifact,
        incumbents: Incumbents,
    ) -> Gate:  # fmt: skip
        """The stage for a package that was evaluated on the test split of `corpus`."""
        champion = incumbents.champion
        limits = recipe.gate.narrowed(Requirements)
        return cls(
            GateSettings(**limits.model_dump(), shares=recipe.shares), evaluation, package,
            shards_of(corpus, "test"), seen, champion,
            champion.test if champion else (), champion.seen if champion else None, incumbents.anchors,
            "cpu" if recipe.train.device == "cpu" else "auto",
        )  # fmt: skip

    def run(self, out: Path, progress: Progress) -> GateFacts:
        """Write verdict.json."""
        report, budgets = measured(self.evaluation)
        champion = self._champion(report, progress) if self.incumbent else None
        verdict = decide(report, budgets, self.settings, champion, self._anchors(), self.settings.shares)
        (out / "verdict.json").write_text(verdict.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return GateFacts(
            passed=verdict.passed, incumbent=self.incumbent.run if self.incumbent else "",
            anchors=tuple(anchor.run for anchor in self.anchors),
        )  # fmt: skip

    def _champion(self, report: Report, progress: Progress) -> Champion:
        assert self.incumbent
        recipe = self.incumbent.record.recipe
        limits = recipe.gate.narrowed(Requirements)
        champion = Champion(
            self.incumbent.report(), self.incumbent.level, limits, recipe.shares, levels=self.incumbent.levels
        )
        if comparable(report, champion.report):
            return champion
        return replace(champion, exchanged=self._exchanged(report, champion.report, progress))

    def _exchanged(self, report: Report, theirs: Report, progress: Progress) -> Exchanged:
        """Each model's package on the documents of the other's report."""
        from qalam_core.evaluation.remeasure import of_report, remeasure  # imports torch
        from qalam_core.training.hardware import choose_device

        assert self.incumbent
        # of texts that were normalised otherwise, a model would be measured on what it was not made for
        rules = self.incumbent.record.recipe.corpus.normalisation
        if self.evaluation.manifest.settings["normalisation"] != [list(rule) for rule in NORMALISATIONS[rules]]:
            other = Remeasured(problem=f"the champion's corpus was normalised as {rules}, and this one otherwise")
            return Exchanged(other, other)
        device = choose_device(self.device)

        def measured(
            whose: str, folder: Path, seen: Artifact | None, on: Report, shards: Sequence[ArtifactFile]
        ) -> Remeasured:  # fmt: skip
            batches = (batch for shard in shards for batch in read_texts(shard.path))
            texts = of_report(on, (text for batch in batches for text in batch.column("text").to_pylist()))
            if texts is None:
                return Remeasured(problem="the store has their texts no more")
            known = Fingerprints.load(seen.path) if seen else None
            return remeasure(folder, whose, texts, known, device, progress)

        return Exchanged(
            measured("the champion", self.incumbent.package, self.incumbent_seen, report, self.test),
            measured("the model", self.package.path / PACKAGE, self.seen, theirs, self.incumbent_test),
        )

    def _anchors(self) -> Iterator[Anchor]:
        """One report at a time, newest first; a champion that was deleted, by what the champion's verdict has of it."""
        there, known = {anchor.run: anchor for anchor in self.anchors}, self.incumbent.levels if self.incumbent else {}
        for run in dict.fromkeys((*known, *there)):
            if anchor := there.get(run):
                yield Anchor(anchor.report(), anchor.level)
            elif self.incumbent and run != self.incumbent.run:
                yield Anchor(None, known[run])


def verdict_of(decision: Artifact) -> Verdict:
    """The verdict that a gate stage wrote."""
    return Verdict.model_validate_json((decision.path / "verdict.json").read_bytes())
