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
from qalam_core.runs import Ancestor, SeenFacts
from tests.reports.small_reports import CORPUS, record, report

BUDGETS = Budgets(package_mb=4.2, load_seconds=0.31)
HOSTILE = "</td><script>x</script>|a\nb"
LINEAGE = tuple(
    Ancestor(
        run=f"demo-{number:012}", package="a" * 64, corpus="b" * 64, seen="c" * 64, documents={HOSTILE: 3000},
        changes=(), accepted=(f"refused: {HOSTILE}",) if number == 200 else (),
    )
    for number in range(365)
)  # fmt: skip
SEEN = SeenFacts(own={HOSTILE: 4000}, lineage={HOSTILE: 5000}, gone={HOSTILE: 100})


def page(made: Report) -> str:
    kept = record(decide(made, BUDGETS, Requirements(), None), made, SEEN, LINEAGE)
    return markdown("demo-0123", kept, made, BUDGETS, CORPUS, None)


def test_report_states_the_figures() -> None:
    text = page(report())
    assert text.startswith("# demo-0123: passed, 1.5000 bits per byte, 21.1% better than the unigram\n")
    assert "\n- built: 2026-11-27 05:42 UTC by Al-Qalam 1.2.3, on Linux x86_64 with 2 cores\n" in text
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
    assert text.startswith("# demo-0123: refused, 2.0000 bits per byte, 5.3% worse than the unigram\n")
    assert "- **failed**: The model needs 2.0000 bits per byte" in text
    assert "| **failed** | unigram |" in text


def test_what_was_not_required_did_not_pass() -> None:
    rows = re.findall(r"^\| \**(\w+)\** \| ([a-z0-9 -]+) \|.*\| (\S+) \|$", page(report()), flags=re.MULTILINE)
    assert {state for state, _, limit in rows if limit == "-"} == {"reported"}
    assert "reported" not in {state for state, _, limit in rows if limit != "-"}


def test_a_diverged_model_is_reported() -> None:
    assert "**nan**" in page(report(model=math.nan))


@pytest.mark.parametrize("sample", ["</div><script>x</script>", "**b** [l](u) `c`", "x\n\n# head"])
def test_a_sample_cannot_leave_its_block(sample: str) -> None:
    inside = page(report(text=sample)).split("\u2067")[1].split("\u2069")[0]
    assert not re.search(r"[<>`*\[\]\n]|#(?!\d)", inside)
    assert html.unescape(inside) == " ".join(sample.split())


def test_exceptions_of_distant_ancestors_are_shown() -> None:
    """Of a year of nights, the nearest runs, and each for which a person made an exception."""
    text = page(report())
    assert (
        "from the weights of run demo-000000000000. So the model has read what that run, and the 364 before it" in text
    )
    assert "5,000 distinct documents in all, 4,000 of them in its own training. 100 documents" in text
    rows = [line for line in text.splitlines() if line.startswith("| demo-")]
    assert len(rows) == 11
    assert "refused: " in rows[-1]
    assert "354 earlier runs are not shown" in text
    assert "<script>" not in text
