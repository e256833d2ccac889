"""Stage 8: the report against the recipe's requirements and the champion's report -> verdict.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qalam_core.errors import StoreError
from qalam_core.evaluation.gate import decide
from qalam_core.evaluation.results import Report, Verdict
from qalam_core.pipeline.evaluate import measured
from qalam_core.pipeline.stage import Stage
from qalam_core.progress import Progress
from qalam_core.recipe import Frozen, Recipe, Requirements
from qalam_core.runs import Runs
from qalam_core.store import Artifact


class GateFacts(Frozen):
    """The decision, and the run that the model was compared with ("" for none)."""

    passed: bool
    incumbent: str
    anchors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Incumbent:
    """The champion that a model is compared with."""

    run: str
    digest: str  # of its evaluation
    path: Path  # of its report.json

    @classmethod
    def of(cls, runs: Runs, run: str) -> Incumbent:
        """A run that a model is compared with. Raises StoreError."""
        (digest,) = runs.record(run).artifacts["evaluate"]
        return cls(run, digest, runs.folder(run) / "report.json")

    def report(self) -> Report:
        """Its evaluation. Raises StoreError."""
        try:
            return Report.model_validate_json(self.path.read_bytes())
        except (FileNotFoundError, ValueError):
            raise StoreError(
                f"{self.path}: missing or damaged, and it is the champion's; restore it, or promote another run"
            ) from None


@dataclass(frozen=True)
class Incumbents:
    """The champion, and the earlier champions, that a model is compared with."""

    champion: Incumbent | None
    anchors: tuple[Incumbent, ...] = ()


def incumbents(recipe: Recipe, evaluation: Artifact, runs: Runs) -> Incumbents:
    """Those of the history now.

    The champion is the newest one with another evaluation than this one, so that building a champion again finds the
    verdict that made it champion.
    """
    for run, record in runs.champions(recipe.name):
        (digest,) = record.artifacts["evaluate"]
        if digest != evaluation.digest:
            return Incumbents(Incumbent.of(runs, run))
    return Incumbents(None)


@dataclass(frozen=True)
class Gate(Stage):
    """Decides whether the model may become champion."""

    name = "gate"
    version = 3
    unit = "checks"

    settings: Requirements
    evaluation: Artifact
    incumbent: Incumbent | None

    @classmethod
    def of(cls, recipe: Recipe, evaluation: Artifact, corpus: Artifact, incumbents: Incumbents) -> Gate:
        """The stage for an evaluated model."""
        return cls(recipe.gate.narrowed(Requirements), evaluation, incumbents.champion)

    def run(self, out: Path, progress: Progress) -> GateFacts:
        """Write verdict.json."""
        champion = self.incumbent.report() if self.incumbent else None
        verdict = decide(*measured(self.evaluation), self.settings, champion)
        (out / "verdict.json").write_text(verdict.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return GateFacts(passed=verdict.passed, incumbent=self.incumbent.run if self.incumbent else "")


def verdict_of(decision: Artifact) -> Verdict:
    """The verdict that a gate stage wrote."""
    return Verdict.model_validate_json((decision.path / "verdict.json").read_bytes())
