"""The report of a run that people open: one HTML file, complete in itself.
Takes a store, a run and its record, gives the page; what was deleted since (an artifact) is left out, and said.
It measures nothing and judges nothing; templates/report.html says how it looks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from qalam_core import package as packages
from qalam_core.errors import PackageError
from qalam_core.evaluation.gate import Piece, Report, Slice, Verdict
from qalam_core.package.statistics import statistics
from qalam_core.recipe import STAGES, Recipe, to_toml
from qalam_core.store import Artifact, Store

__all__ = ["page"]


def page(store: Store, run: str, folder: Path, record: Mapping[str, Any]) -> str:
    """The page of `run`, whose files are in `folder` and whose run.json is `record`."""
    recipe = Recipe.parse(record["recipe"], f"run {run}")
    report = Report.model_validate_json((folder / "report.json").read_text(encoding="utf-8"))
    verdict = Verdict.model_validate(record["verdict"])
    found = partial(_artifact, store, record)
    tensors, problem = _tensors(folder / "model")
    environment = Environment(
        loader=PackageLoader("qalam_core.reports"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters.update(number=_number, share=_share, change=_change, heat=_heat)
    corpus, training = found("prepare"), found("train")
    return environment.get_template("report.html").render(
        run=run, record=record, stages=[stage for stage in STAGES if stage in record["artifacts"]],
        recipe=recipe, recipe_toml=to_toml(recipe), report=report, verdict=verdict,
        slices=_slices(report, verdict), facts=corpus.facts if corpus else None,
        training=training.facts if training else None, plots=_plots(report, verdict, corpus, training),
        tensors=tensors, problem=problem,
    )  # fmt: skip


def _artifact(store: Store, record: Mapping[str, Any], stage: str) -> Artifact | None:
    """The first artifact of a stage, if it is still in the store."""
    (key, *_) = record["artifacts"].get(stage, [""])
    folder = store.artifact_folder(stage, key)
    return Artifact(stage, key, folder) if key and (folder / "manifest.json").is_file() else None


def _tensors(model: Path) -> tuple[list[tuple[str, str, tuple[float, ...]]], str]:
    """(name, shape, (mean, standard deviation, least, largest)) of each tensor; else why there is none."""
    try:
        weights = packages.read(model).weights
    except PackageError as error:
        return [], str(error).replace(f"{model}/", "")
    return [(name, " × ".join(map(str, values.shape)), statistics(values)) for name, values in weights.items()], ""


def _slices(report: Report, verdict: Verdict) -> list[dict[str, Any]]:
    """One row for everything, and one for each slice where there is more than one."""
    comparison = verdict.comparison
    rows: list[tuple[str, Slice, Any]] = [("all", report.overall, comparison and comparison.overall)]
    if len(report.sources) > 1:
        rows += [(name, part, comparison and comparison.sources.get(name)) for name, part in report.sources.items()]
    return [{"name": name, "figures": part, "champion": compared} for name, part, compared in rows]


def _plots(report: Report, verdict: Verdict, corpus: Artifact | None, training: Artifact | None) -> dict[str, Markup]:
    from qalam_core.reports import plots  # brings matplotlib

    drawn: dict[str, str] = {}
    if training:
        text = (training.path / "metrics.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines()]

        def of(key: str, label: str) -> tuple[str, list[float], list[float]]:
            chosen = [line for line in lines if key in line]
            return label, [line["step"] for line in chosen], [line[key] for line in chosen]

        shown = [line for line in (of("loss", "training"), of("validation_loss", "validation")) if line[1]]
        if shown:
            drawn["losses"] = plots.losses(shown)
        for key, label in (("learning_rate", "learning rate"), ("gradient_norm", "gradient norm")):
            if of(key, label)[1]:
                drawn[key] = plots.curve(key, of(key, label), label)
    rows, sure = {}, {}
    for row in _slices(report, verdict):
        part, compared = row["figures"], row["champion"]
        values = part.bits_per_byte.model_dump()
        if compared:
            values["champion"] = compared.champion
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        if "model" in values:
            rows[row["name"]] = values
            if part.intervals:
                sure[row["name"]] = (part.intervals.model.low, part.intervals.model.high)
    if rows:
        drawn["bits"] = plots.bits(rows, sure)
    if corpus and "read" in corpus.facts:
        facts = corpus.facts
        dropped = {name.replace("_", " "): count for name, count in facts["rejected"].items()}
        drawn["funnel"] = plots.funnel({"read": facts["read"], **dropped, "kept": facts["kept"]})
    return {name: Markup(svg) for name, svg in drawn.items()}  # noqa: S704  # our own drawing, escaped by matplotlib


def _number(value: float | None, digits: int = 4) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def _share(value: float) -> str:
    return f"{value:.1%}"


def _change(value: float) -> str:
    return f"{value:+.1%}".replace("-", "−")


def _heat(piece: Piece) -> int:
    """0 to 4: how likely the piece was, for its colour."""
    bounds: Sequence[float] = (0.01, 0.05, 0.2, 0.5)
    return sum(piece.probability >= bound for bound in bounds)
