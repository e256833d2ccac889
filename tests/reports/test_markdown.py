"""The Markdown report: its content, and its escaping of foreign text."""

from __future__ import annotations

import html
import math
import re

import pytest

from qalam_core.evaluation.gate import decide
from qalam_core.evaluation.results import Budgets, Report
from qalam_core.recipe import Requirements
from qalam_core.reports.markdown import markdown
from tests.reports.small_reports import CORPUS, recipe, report

BUDGETS = Budgets(package_mb=4.2, load_seconds=0.31)


def page(made: Report) -> str:
    return markdown(recipe(), made, BUDGETS, decide(made, BUDGETS, Requirements(), None), CORPUS, {"train": 41.25})


def test_report_states_the_figures() -> None:
    text = page(report())
    assert text.startswith("# demo: passed the gate\n")
    for figure in (
        "**1.5000**",
        "1.9000",
        "1.6000",
        "1.2%",
        "4.20 MB",
        "0.310 s",
        "41.2",
        "12,345",
        "7 tokens",
    ):
        assert figure in text
    assert "| documents | all |\n| --- | --- |\n| read | 5,000 |\n| too short | 300 |\n| kept | 4,700 |\n" in text
    assert '<div dir="rtl">\n\n\u2067البيت\u2069\n\n</div>' in text
    assert "```toml" in text
    assert text.endswith("\n")


def test_every_table_row_has_as_many_cells_as_its_head() -> None:
    for block in re.findall(r"(?:^\|.*\n)+", page(report(text="a|b\nc")), flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_a_failed_verdict_leads_with_its_reasons() -> None:
    made = report(model=2.0)
    text = page(made)
    assert text.startswith("# demo: did not pass the gate\n\n- The model needs 2.0000 bits per byte")
    assert "**failed**" in text


def test_a_diverged_model_is_reported() -> None:
    assert "**nan**" in page(report(model=math.nan))


@pytest.mark.parametrize("sample", ["</div><script>x</script>", "**b** [l](u) `c`", "x\n\n# head"])
def test_a_sample_cannot_leave_its_block(sample: str) -> None:
    inside = page(report(text=sample)).split("\u2067")[1].split("\u2069")[0]
    assert not re.search(r"[<>`*\[\]\n]|#(?!\d)", inside)
    assert html.unescape(inside) == " ".join(sample.split())
