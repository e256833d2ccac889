"""The verdict and the five sentences."""

from __future__ import annotations

import pytest

from qalam_core.review.data import SourceDocuments
from qalam_core.review.results import Alarm
from qalam_core.review.summary import SECTIONS, Decision, Review
from tests.review.small_review import LOOSER, NEW, OLD, RECIPE, behaviour, data, review, weights

HIGH = Alarm(section="words", severity="high", message='"كلمة" is said 140 times as often.')
LOW = Alarm(section="weights", severity="low", message="Heads 0 and 1 of layer 0 are swapped.")


def without_moves(**parts: object) -> Review:
    """A review whose data raise no alarm."""
    return review(data=data().model_copy(update={"moves": {}}), **parts)


def test_there_are_five_sentences_in_the_order_of_the_page() -> None:
    found = review()
    assert tuple(found.sentences) == SECTIONS and len(SECTIONS) == 5
    assert all(sentence.endswith(".") and "\n" not in sentence for sentence in found.sentences.values())
    assert found.sentences["recipe"] == "1 value of the recipe differs (seed)."
    assert "12 new, 1 gone (1: too short), 1 in another split (1 train -> test)" in found.sentences["data"]
    assert "1.5300 bits per byte, where the old one needs 1.5000 (+2.0%)" in found.sentences["behaviour"]


def test_the_same_documents_of_other_sources_are_not_the_same_data() -> None:
    rows = tuple(
        SourceDocuments(name=name, old=80, new=new, added=0, gone=0, moved=0) for name, new in (("a", 60), ("b", 100))
    )
    overall = SourceDocuments(name="all", old=160, new=160, added=0, gone=0, moved=0)
    for sources, more in ((rows, ", but some are of other sources now"), ((), "")):
        changes = data().model_copy(update={"overall": overall, "moves": {}, "sources": sources})
        said = review(data=changes).sentences["data"]
        assert said == f"The 160 documents are the same, in the same splits{more}."


def test_a_clean_review() -> None:
    found = without_moves()
    assert found.clean
    assert found.verdict == "The gate passed demo-new; no alarm."


def test_what_was_not_looked_at_is_no_pass() -> None:
    found = without_moves(weights=None)
    assert not found.clean
    assert found.verdict == "The gate passed demo-new; no alarm in what was looked at; 1 thing could not be looked at."
    assert found.sentences["weights"] == "Not available: the corpus of run demo-old was deleted."
    measured = behaviour().model_copy(update={"unavailable": ("The training text is empty.",)})
    assert not without_moves(behaviour=measured).clean


def test_alarms_are_counted_and_come_first_in_their_sentence() -> None:
    found = without_moves(recipe=LOOSER, behaviour=behaviour(alarms=(HIGH,)), weights=weights(alarms=(LOW, HIGH)))
    assert not found.clean
    assert [alarm.severity for alarm in found.alarms] == ["high", "high", "high", "low"]
    assert found.verdict == "The gate passed demo-new; 4 alarms, 3 of them high."
    assert found.sentences["recipe"].startswith("The gate is looser (gate.tolerance 0.03 -> 0.1); 1 other value")
    assert "said 140 times as often" in found.sentences["behaviour"]
    assert found.sentences["weights"].startswith('"كلمة" is said 140 times as often (and 1 further alarm)')


@pytest.mark.parametrize(
    ("decided", "begin"),
    [
        (Decision("refused", OLD.name, ("Too dear.",)), f"The gate refused {NEW.name}; "),
        (Decision("waiting", OLD.name, ("Looser.",)), f"The gate leaves {NEW.name} to a person; "),
        (Decision("passed", "demo-other", ()), f"The gate passed {NEW.name}, which it compared with demo-other, "),
        (Decision("refused", "", ("Bad.",)), f"The gate did not pass {NEW.name}, which it compared with no champion, "),
        (None, f"No gate has judged {NEW.name}; "),
    ],
)  # fmt: skip
def test_the_gate_s_decision_is_about_its_own_comparison(decided: Decision | None, begin: str) -> None:
    found = without_moves(decided=decided)
    assert found.verdict.startswith(begin)
    assert not found.clean
    assert found.reasons == (decided.reasons if decided and decided.against == OLD.name else ())


def test_a_source_that_lost_its_documents_is_an_alarm() -> None:
    row = data().sources[0].model_copy(update={"old": 100, "new": 70, "added": 0, "gone": 30})
    found = data().model_copy(update={"sources": (row,), "moves": {}})
    assert [(alarm.severity, alarm.message) for alarm in found.alarms] == [
        ("low", "The source news has 30 fewer documents, of 100.")
    ]
    emptied = found.model_copy(update={"emptied": ("news",)})
    assert [alarm.severity for alarm in emptied.alarms] == ["high"]
    few = found.model_copy(update={"sources": (row.model_copy(update={"new": 90}),)})
    assert not few.alarms


def test_documents_that_the_old_model_has_read_are_named() -> None:
    assert "held out now" in data().alarms[0].message
    assert not data().model_copy(update={"moves": {"test -> train": 3}}).alarms


def test_a_review_survives_json() -> None:
    found = review(recipe=RECIPE, decided=None)
    assert Review.model_validate_json(found.to_json()) == found
