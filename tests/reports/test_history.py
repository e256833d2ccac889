"""The page of a recipe's runs over time."""

from __future__ import annotations

import html
import math
import re
from datetime import UTC, datetime, timedelta

from qalam_core.display import printable
from qalam_core.evaluation.results import Bits
from qalam_core.reports import plots
from qalam_core.reports.history import history_page
from qalam_core.runs import Name, Promotion, Summary
from tests.conftest import judged

START = datetime(2030, 1, 1, tzinfo=UTC)


def summary(day: float, bits: float, *failed: str) -> Summary:
    return Summary(
        created=START + timedelta(days=day),
        recipe=Name(name="demo"),
        verdict=judged(*failed),
        bits_per_byte=Bits(model=bits, unigram=2.0, ngram=2.0, characters=2.0),
        package_mb=1.0,
        parameters=9,
    )


def promotion(run: str, day: int, **more: str) -> Promotion:
    when = (START + timedelta(days=day)).isoformat()
    return Promotion.model_validate({"run": run, "model": run, "when": when, "why": "w", "who": "amal", **more})


def page(summaries: dict[str, Summary], *promotions: Promotion) -> str:
    return history_page("demo", summaries, promotions, lambda run: "")


def text(page: str) -> str:
    return " ".join(re.sub("<[^>]*>", " ", page[page.index("<body>") :]).split())


def test_every_run_is_told_apart() -> None:
    runs = {
        "one": summary(0, 2.0), "two": summary(1, 1.9), "three": summary(2, 1.8, "champion", "repetition"),
        "four": summary(3, 1.8, "yardstick"), "five": summary(400, 30.0, "champion"), "six": summary(401, math.nan),
        "seven": summary(402, 1.7),
    }  # fmt: skip
    drawn = page(
        runs, promotion("gone", 0), promotion("one", 0), promotion("two", 1),
        promotion("one", 5, action="rollback", undone="two"),
    )  # fmt: skip
    shown = text(drawn)
    for kind in ("champion (1)", "rolled back (1)", "refused (2)", "waiting (1)", "passed (1)"):
        assert kind in shown
    assert "demo: 7 runs, champion at 2.0000 bits per byte" in shown
    assert "At the top: 1 with more bits per byte than the plot shows" in shown
    assert "as their figure is not a number: 1" in shown
    assert "as their runs were deleted from the store: 1 earlier champions" in shown
    assert "three 1.8000 refused: champion, repetition" in shown
    assert "two 1.9000 passed, rolled back" in shown
    assert "one champion again by amal : w" in shown
    assert len({(marker, filled) for marker, _, filled in plots.KINDS.values()}) == len(plots.KINDS), "not by colour"
    assert "2031" in shown, "the axis reaches over the gap"


def test_names_are_only_text() -> None:
    hostile = "</bdi><script>x</script> [red] \x1b[31m \u202egnp " + 20 * "long"
    drawn = page(
        {hostile: summary(0, math.nan, hostile)},
        Promotion(run=hostile, model="m", when=hostile, why=hostile, who=hostile, accepted=(hostile,)),
    )
    assert drawn == printable(drawn, lines=True)
    assert drawn.count(f"<bdi>{html.escape(printable(hostile))}</bdi>") == 2
    assert "<script" not in drawn


def test_few_and_many_runs() -> None:
    assert "demo: 1 run, no champion" in text(page({"one": summary(0, 2.0)}))
    assert "<svg" not in page({"one": summary(0, math.inf)})
    drawn = page({f"r-{n}": summary(n, 2 - n / 5000) for n in range(400)}, promotion("r-399", 399))
    assert "350 earlier ones: qalam runs --name demo" in text(drawn)
    assert len(drawn) < 100_000
