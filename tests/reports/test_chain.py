"""A chain of nights in the reports: what is measured, what is not, and what is gone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from qalam_core.evaluation.results import Bits, Compared, Comparison, Interval, Report
from qalam_core.recipe import Recipe
from qalam_core.reports.chain import SHOWN, Chain, chain_of, drift_text
from qalam_core.reports.page import page
from qalam_core.runs import Ancestor, Built, Runs, SeenFacts
from qalam_core.store import Store
from tests.conftest import judged
from tests.reports.small_reports import recipe, record, report

SEEN = SeenFacts(own={"a": 1}, lineage={"a": 1}, gone={})
HOSTILE = "demo-</code><script>x</script>\x1b[31m"


def ancestor(run: str) -> Ancestor:
    return Ancestor(run=run, package="a" * 64, corpus="b" * 64, seen="c" * 64, documents={}, changes=(), accepted=())


def against(champion: float, model: float, low: float, high: float, again: bool = True) -> Comparison:
    found = Compared(documents=90, effective=80, model=model, champion=champion, change=Interval(low=low, high=high))
    return Comparison(overall=found, sources={}, measured_again=again, level=1.0)


class Nights:
    """Runs in a store that have nothing but a record: `run-0` from scratch, and nights that continue."""

    def __init__(self, folder: Path, **train: Any) -> None:
        self.runs = Runs(Store(folder / "store"))
        self.recipe = recipe(train={"start": "continue", **train})
        self.line: list[str] = []
        self.count = 0

    def add(
        self, run: str = "", comparison: Comparison | None = None, *, cold: bool = False, champion: bool = True,
        recipe: Recipe | None = None, **changes: object,
    ) -> str:  # fmt: skip
        run, self.count = run or f"demo-{self.count:06}", self.count + 1
        made = record(judged(*(() if champion else ("unigram",)), comparison=comparison), report(), SEEN).model_copy(
            update={
                "created": f"2026-11-27T00:{self.count // 60:02}:{self.count % 60:02}+00:00",
                "recipe": recipe or self.recipe,
                "lineage": () if cold else tuple(map(ancestor, reversed(self.line))),
                "incumbent": self.line[-1] if self.line else "",
                "timings": {"ingest": 1.0, "vocab": 0.5, "train": 4.0, "seen": 0.25, "export": 2.0, "gate": 1.0},
                "built": {"train": Built(amount=9, seconds=4.0)},
                "bits_per_byte": Bits(model=1.5 + self.count / 100, unigram=2.0, ngram=2.0, characters=2.0),
                **changes,
            }
        )
        folder = self.runs.store.root / "runs" / run
        folder.mkdir(parents=True)
        (folder / "run.json").write_bytes(made.to_json())
        if champion:
            self.line = [run] if cold else [*self.line, run]
        return run

    def many(self, count: int) -> list[str]:
        return [self.add(comparison=against(1.6, 1.5, -0.08, -0.04)) for _ in range(count)]

    def chain(self, run: str) -> Chain:
        found = chain_of(self.runs, run, self.runs.record(run))
        assert found
        return found

    def text(self, run: str) -> str:
        return drift_text(self.chain(run), self.runs.record(run).recipe)


def test_a_cold_run_that_is_worse_leaves_the_chain_and_measures_its_drift(tmp_path: Path) -> None:
    nights = Nights(tmp_path, cold_every=3)
    first, _, last = nights.many(3)
    cold = nights.add(comparison=against(1.5, 1.6, 0.05, 0.08), cold=True, champion=False)
    sentence = (
        f"The chain of 2 nights since run {first} needs 6.2% fewer bits per byte (-7.4% to -4.8%, each end with 95% "
        f"confidence) than run {cold}, which began from scratch."
    )
    assert nights.text(cold) == sentence
    assert nights.text(last) == sentence, "also of the night that it was compared with"
    later = nights.many(2)
    assert nights.text(later[0]) == f"{sentence} 1 night has come after that comparison."
    assert nights.text(later[1]) == f"{sentence} 2 nights have come after that comparison."


def test_a_cold_run_that_is_better_begins_a_chain_whose_drift_is_unknown(tmp_path: Path) -> None:
    nights = Nights(tmp_path, cold_every=7)
    first = nights.many(3)[0]
    cold = nights.add(comparison=against(1.6, 1.5, -0.07, -0.01), cold=True)
    sentence = (
        f"The chain of 2 nights since run {first} needs 6.7% more bits per byte (+1.0% to +7.5%, each end with 95% "
        f"confidence) than run {cold}, which began from scratch."
    )
    assert nights.text(cold) == sentence
    (one,) = nights.many(1)
    assert nights.text(one) == (
        f"How far the chain of 1 night since run {cold} has drifted from a model that was trained from scratch is "
        "unknown: no such comparison with it is in the store. By train.cold_every = 7, one build in so many "
        f"is from scratch, which measures it. Before it: {sentence}"
    )


def test_where_neither_is_better_it_is_said(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.recipe = recipe(gate={"confidence": 0.975})
    nights.many(2)
    cold = nights.add(comparison=against(1.51, 1.5, -0.02, 0.01), cold=True, champion=False)
    assert "needs 0.7% more bits per byte (-1.0% to +2.0%, each end with 97.5% confidence)" in nights.text(cold)
    assert nights.text(cold).endswith("which began from scratch. So neither is shown to be better.")


@pytest.mark.parametrize("start", ["continue", "demo-000000"])
def test_without_a_cold_run_the_drift_is_unknown(start: str, tmp_path: Path) -> None:
    nights = Nights(tmp_path, start=start)
    last = nights.many(5)[-1]
    assert nights.text(last) == (
        "How far the chain of 4 nights since run demo-000000 has drifted from a model that was trained from scratch is "
        "unknown: no such comparison with it is in the store. train.cold_every measures it, with train.start "
        '"champion" or "continue": with 7, one build in seven begins from scratch, and the gate compares it with the '
        "chain."
    )


@pytest.mark.parametrize(
    ("comparison", "train", "problem"),
    [
        (None, {}, "could not be compared with the chain"),
        (against(math.nan, 1.5, -0.1, 0.1), {}, "could not be compared with the chain"),
        (against(1.5, 1.5, math.nan, math.nan), {}, "could not be compared with the chain"),
        (against(1.5, 0.0, -1.0, -1.0), {}, "could not be compared with the chain"),
        (against(1.5, 1.4, -0.1, -0.05), {"steps": 7}, "has other settings than the chain (train.steps)"),
    ],
)
def test_a_comparison_that_says_nothing_is_none(
    comparison: Comparison | None, train: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    nights = Nights(tmp_path)
    nights.many(3)
    changed = recipe(train={"start": "continue", **train})
    cold = nights.add(comparison=comparison, cold=True, champion=False, recipe=changed)
    assert "is unknown: no such comparison" in nights.text(cold)
    assert nights.text(cold).endswith(f"Run {cold}, which began from scratch, {problem}: its report has the reason.")


def test_a_later_cold_run_without_a_comparison_is_named_beside_the_measured_one(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.many(2)
    nights.add(comparison=against(1.5, 1.6, 0.05, 0.08), cold=True, champion=False)
    nights.many(1)
    failed = nights.add(cold=True, champion=False)
    assert "needs 6.2% fewer" in nights.text(failed)
    assert f"Run {failed}, which began from scratch, could not be compared" in nights.text(failed)


def test_runs_without_a_chain_have_none(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    first = nights.add()
    again = nights.add(comparison=against(1.5, 1.4, -0.1, -0.05), cold=True)
    for run in (first, again):
        assert chain_of(nights.runs, run, nights.runs.record(run)) is None


def test_figures_of_each_night(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    first = nights.add()
    second = nights.add(comparison=against(1.61, 1.5, -0.08, -0.04))
    third = nights.add(comparison=against(1.62, 1.5, -0.08, -0.04, again=False), built={})
    cold = nights.add(comparison=against(1.63, 1.7, 0.01, 0.04), cold=True, champion=False)
    shown = nights.chain(third).nights
    assert [(night.run, night.number, bool(night.cold)) for night in shown] == [
        (first, 0, False), (second, 1, False), (third, 2, False), (cold, 2, True),
    ]  # fmt: skip
    assert [night.next_day for night in shown] == [1.61, None, 1.63, None]
    assert [night.cost and tuple(night.cost) for night in shown] == [(1.75, 4.0, 3.0)] * 2 + [None, (1.75, 4.0, 3.0)]


def held_out(texts: str, nats: float = 1.0) -> Report:
    """A report on documents of 10 bytes, each of which has a letter for its digest."""
    size = len(texts)
    return report().model_copy(
        update={"document_digests": tuple(texts), "document_bytes": (10,) * size, "document_nats": (nats,) * size}
    )


def test_new_text_is_what_the_run_before_does_not_hold_out(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    made = [held_out("abc"), held_out("bcde", 2.0), held_out("de"), held_out("defg", math.nan), held_out("gh", 3.0)]
    line = nights.many(4)
    line.append(nights.add(comparison=against(1.5, 1.6, 0.05, 0.08), cold=True, champion=False))
    for run, one in zip(line[:-1], made, strict=False):
        (nights.runs.folder(run) / "report.json").write_text(one.model_dump_json(), encoding="utf-8")

    def new(run: str, given: Report) -> list[tuple[int, float] | None]:
        chain = chain_of(nights.runs, run, nights.runs.record(run), given)
        assert chain
        return [night.new and (night.new.documents, round(night.new.bits * math.log(2), 3)) for night in chain.nights]

    # nothing is new in the third night, and the fourth one's figures are not finite
    assert new(line[-1], made[-1]) == [(3, 0.1), (2, 0.2), None, None, (1, 0.3)]
    (nights.runs.folder(line[0]) / "report.json").write_text("{", encoding="utf-8")
    assert new(line[-1], made[-1]) == [None, None, None, None, (1, 0.3)]
    (nights.runs.folder(line[0]) / "report.json").write_text(held_out("").model_dump_json(), encoding="utf-8")
    assert new(line[-1], made[-1]) == [None, None, None, None, (1, 0.3)], "documents that were not recorded"


def test_deleted_nights_are_named_and_a_chain_of_years_is_bounded(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    line = nights.many(SHOWN + 40)
    for run in (line[3], line[-5]):
        nights.runs.delete(run)
    (nights.runs.folder(line[-7]) / "run.json").write_text("{")
    chain = nights.chain(line[-1])
    assert (len(chain.nights), chain.hidden, chain.missing) == (SHOWN, 40, [line[-7], line[-5]])
    drawn = page(line[-1], nights.runs.record(line[-1]), report(), None, (), chain)
    assert f"without figures: <code>{line[-7]}</code>, <code>{line[-5]}</code>." in drawn
    assert "40 earlier runs are not shown" in drawn
    assert len(drawn) < 150_000


def test_names_are_only_text(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.line = [HOSTILE]
    last = nights.add(built={})  # nothing is known of its cost
    drawn = page(last, nights.runs.record(last), report(), None, (), nights.chain(last))
    assert "<script" not in drawn
    assert "\x1b" not in drawn
