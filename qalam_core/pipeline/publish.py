"""Publishing: all artifacts of a build become a run that people can read, and on a pass the champion.
Takes a store, the recipe and the artifacts; gives the run folder: package, tokenizer, reports, run.json.
It does not know how any of them was made.

The package's card is written here, because its figures are measured on the exported package: weights, code and
vocabulary are the export's to the byte, and the manifest vouches for the card that is shipped.
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

from qalam_core import package as packages
from qalam_core.evaluation.gate import Budgets, Report, Verdict
from qalam_core.recipe import Recipe, digest
from qalam_core.reports import markdown as reports
from qalam_core.store import Artifact, Store

__all__ = ["Published", "measured", "publish"]


@dataclass(frozen=True)
class Published:
    """What a build ends with."""

    run: str
    folder: Path
    verdict: Verdict
    champion: bool  # whether the run is the champion now
    promoted: bool  # whether it has become so by this very call
    artifacts: tuple[Artifact, ...]  # of every stage, in order

    @property
    def cached(self) -> bool:
        """Whether nothing had to be built."""
        return all(artifact.cached for artifact in self.artifacts)


def publish(store: Store, recipe: Recipe, artifacts: Sequence[Artifact]) -> Published:
    """All artifacts of a build -> a run folder, and on a pass the champion's place.

    A run that was champion before is not promoted again: a rollback stands until a new model wins.
    """
    last = {artifact.stage: artifact for artifact in artifacts}
    package, evaluation, judged = last["export"], last["evaluate"], last["gate"]
    verdict = Verdict.model_validate_json((judged.path / "verdict.json").read_text(encoding="utf-8"))
    report, budgets = measured(evaluation)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    timings: dict[str, float] = {}
    for artifact in artifacts:
        timings[artifact.stage] = round(timings.get(artifact.stage, 0.0) + artifact.seconds, 3)
    key = digest({"package": package.digest, "verdict": judged.digest})
    began = last["train"].facts["warm_start"]

    def fill(folder: Path) -> None:
        from qalam_core.reports.page import (
            page,  # brings jinja2 and matplotlib, which a fully cached build does without
        )

        (folder / "model").mkdir()
        for file in (package.path / "model").iterdir():  # not copytree, whose error has no errno for the store
            shutil.copy(file, folder / "model")
        facts = {
            "corpus": last["prepare"].facts, "train": last["train"].facts, "entries": last["vocab"].facts["entries"],
        }  # fmt: skip
        packages.replace_card(folder / "model", reports.model_card(recipe, facts, report))
        shutil.copy(package.path / "model" / "tokenizer.json", folder)
        shutil.copy(evaluation.path / "report.json", folder)
        text = reports.markdown(recipe, report, budgets, verdict, last["prepare"].facts, timings)
        (folder / "report.md").write_text(text, encoding="utf-8")
        digests: dict[str, list[str]] = {}
        for artifact in artifacts:
            digests.setdefault(artifact.stage, []).append(artifact.digest)
        record = {
            "created": created, "recipe": recipe.canonical(), "artifacts": digests, "timings": timings,
            # runs that a reproduction needs: the champion of that time, and whose weights training began with
            "rival": judged.facts["rival"], "parent": began["run"] if began else "",
            "verdict": verdict.model_dump(mode="json"), "bits_per_byte": report.bits_per_byte.model_dump(mode="json"),
            "package_mb": budgets.package_mb, "parameters": last["train"].facts["parameters"],
            "code": metadata.version("al-qalam"), "machine": _machine(), "dependencies": _dependencies(),
        }  # fmt: skip
        (folder / "run.json").write_text(
            json.dumps(record, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )
        html = page(store, store.run_id(recipe.name, key), folder, record)
        (folder / "report.html").write_text(html, encoding="utf-8")

    run, _ = store.publish(recipe.name, key, fill)
    promoted = verdict.passed and run not in {promotion["run"] for promotion in store.promotions(recipe.name)}
    if promoted:
        store.promote(recipe.name, run, created, "passed the gate", "gate")
    champion = store.champion(recipe.name) == run
    return Published(run, store.run_folder(run), verdict, champion, promoted, tuple(artifacts))


def measured(evaluation: Artifact) -> tuple[Report, Budgets]:
    """What an evaluation found."""
    report = (evaluation.path / "report.json").read_text(encoding="utf-8")
    budgets = (evaluation.path / "budgets.json").read_text(encoding="utf-8")
    return Report.model_validate_json(report), Budgets.model_validate_json(budgets)


def speed(artifacts: Sequence[Artifact]) -> str:
    """Megabytes of text a second of work that went into artifacts of one stage, as "12.3 MB/s".

    Empty where nothing was built, or too little text was read to tell. Of shards worked on side by side the
    seconds add up, so this is the speed of one worker.
    """
    built = [(_text_bytes(artifact), artifact.seconds) for artifact in artifacts if not artifact.cached]
    size, seconds = (sum(column) for column in zip(*built, strict=True)) if built else (0, 0.0)
    return f"{size / 1e6 / seconds:.1f} MB/s" if size >= 100_000 and seconds else ""


def _text_bytes(artifact: Artifact) -> int:
    """Bytes of text that a stage gave (ingest, prepare) or read (vocab, tokenize); 0 for the others."""
    if artifact.stage == "prepare":
        return sum(split["bytes"] for split in artifact.facts["splits"].values())
    return int(artifact.facts.get("bytes", 0)) if artifact.stage in ("ingest", "vocab", "tokenize") else 0


def _machine() -> dict[str, Any]:
    return {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count(),
            "python": platform.python_version()}  # fmt: skip


def _dependencies() -> dict[str, str]:
    names = ("torch", "numpy", "pyarrow", "tokenizers", "datasets", "safetensors", "pydantic", "prefect")
    return {name: metadata.version(name) for name in names}
