"""What changed between two corpora: real preparations of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qalam_core.arabic import NORMALISATIONS
from qalam_core.corpus.readers import DOCUMENTS, ingest
from qalam_core.corpus.sources import resolve
from qalam_core.corpus.splits import read_split, read_texts
from qalam_core.recipe import Corpus
from qalam_core.review.data import EXCERPT, DataChanges, Prepared, SourceDocuments, data_changes
from tests.conftest import sentences
from tests.corpus.preparing import prepare_files
from tests.corpus.test_fingerprints import read

TEXTS = sentences(120)
NONE: dict[str, tuple[int, ...]] = {}


def prepared(folder: Path, texts: dict[str, list[str]], **settings: Any) -> Prepared:
    """A corpus of sources; a document is a line."""
    folder.mkdir(parents=True)
    sources = []
    for number, (name, lines) in enumerate(texts.items()):
        path = folder / f"{number}.txt"
        path.write_text("\n".join(lines), encoding="utf-8")
        sources.append({"path": str(path), "name": name})
    corpus = Corpus.model_validate(
        {"sources": sources, "test": 0.1, "validation": 0.1, "filters": "none", "near_duplicates": False} | settings
    )
    files = []
    for number, file in enumerate(resolve(corpus.sources)):
        ingest(file, folder / f"read-{number}")
        files.append((file.settings.name, folder / f"read-{number}" / DOCUMENTS))
    facts = prepare_files(files, corpus, folder / "out")
    return Prepared(folder / "out", facts, NORMALISATIONS[corpus.normalisation])


def compared(
    tmp_path: Path, old: dict[str, list[str]], new: dict[str, list[str]],
    earlier: dict[str, tuple[int, ...]] | str = NONE, **settings: Any,
) -> DataChanges:  # fmt: skip
    return data_changes(prepared(tmp_path / "old", old), prepared(tmp_path / "new", new, **settings), 1, earlier)


def test_the_same_corpus(tmp_path: Path) -> None:
    found = compared(tmp_path, {"a": TEXTS}, {"a": TEXTS})
    assert (found.overall.added, found.overall.gone, found.overall.moved) == (0, 0, 0)
    assert found.overall.old == found.overall.new == 120
    assert not (found.sources or found.rules or found.samples or found.emptied or found.gone_because or found.moves)


def test_documents_that_are_of_another_source_now(tmp_path: Path) -> None:
    """As of two sources with common texts whose order in the recipe changed: the first one has them."""
    found = compared(tmp_path, {"a": TEXTS[:80], "b": TEXTS[60:]}, {"b": TEXTS[60:], "a": TEXTS[:80]})
    assert (found.overall.added, found.overall.gone) == (0, 0)
    assert [(row.name, row.old, row.new) for row in found.sources] == [("a", 80, 60), ("b", 40, 60)]


def test_added_and_gone_by_source(tmp_path: Path) -> None:
    found = compared(tmp_path, {"a": TEXTS[:60], "b": TEXTS[60:80]}, {"a": TEXTS[:55], "c": TEXTS[80:]})
    assert [(row.name, row.old, row.new, row.added, row.gone) for row in found.sources] == [
        ("c", 0, 40, 40, 0), ("b", 20, 0, 0, 20), ("a", 60, 55, 0, 5),
    ]  # fmt: skip
    assert found.emptied == ("b",) and found.overall.added == 40 and found.overall.gone == 25
    because = {reason.split(":")[0]: count for reason, count in found.gone_because.items()}
    assert because == {"its source is not in the recipe": 20, "not among the rejected documents": 5}
    added, gone = found.samples
    assert (added.what, added.count, gone.what, gone.count) == ("added", 40, "gone", 25)
    assert {one.source for one in added.documents} == {"c"} and all(one.text in TEXTS for one in added.documents)
    assert {one.source for one in gone.documents[:2]} == {"a", "b"}  # each source in turn


def test_the_rule_that_rejects_what_is_gone(tmp_path: Path) -> None:
    limit = sorted(map(len, TEXTS))[30]
    found = compared(tmp_path, {"a": TEXTS}, {"a": TEXTS}, min_chars=limit)
    short = sum(len(text) < limit for text in TEXTS)
    assert found.gone_because == {"too short": short}
    assert [(row.rule, row.old, row.new) for row in found.rules] == [("too_short", 0, short)]
    gone, rejected = found.samples
    assert {one.note for one in gone.documents} == {"too short"}
    assert rejected.what == "rejected as too short" and rejected.count == short and rejected.documents[0].text in TEXTS


def test_moved_between_splits(tmp_path: Path) -> None:
    found = compared(tmp_path, {"a": TEXTS}, {"a": TEXTS}, test=0.3)
    assert found.overall.moved == sum(found.moves.values()) > 0
    assert set(found.moves) <= {"train -> test", "train -> validation", "validation -> test"}
    (moved,) = found.samples
    assert {one.note for one in moved.documents} <= set(found.moves)
    assert found.splits["test"][0] < found.splits["test"][1]


def test_another_normalisation_cannot_be_matched(tmp_path: Path) -> None:
    found = compared(tmp_path, {"a": TEXTS}, {"a": TEXTS[:100]}, normalisation="search")
    assert "normalised otherwise" in found.unmatched and found.overall.added == found.overall.gone == 0
    assert [(row.old, row.new) for row in found.sources] == [(120, 100)]


def test_samples_do_not_depend_on_the_order_of_documents(tmp_path: Path) -> None:
    old, new = {"a": TEXTS[:40]}, {"a": TEXTS}
    forwards = data_changes(prepared(tmp_path / "1", old), prepared(tmp_path / "2", new), 1)
    backwards = data_changes(prepared(tmp_path / "3", old), prepared(tmp_path / "4", {"a": TEXTS[::-1]}), 1)
    assert forwards == backwards
    assert data_changes(prepared(tmp_path / "5", old), prepared(tmp_path / "6", new), 2).samples != forwards.samples


def test_excerpts_are_bounded(tmp_path: Path) -> None:
    text = " ".join(TEXTS[:20])
    found = compared(tmp_path, {"a": TEXTS}, {"a": [*TEXTS, text]})
    (one,) = found.samples[0].documents
    assert len(one.text) == EXCERPT < one.characters == len(text)


def test_a_source_that_takes_over_is_an_alarm(tmp_path: Path) -> None:
    """One that is new, or grew; a night's growth is none, and neither is that of the only source."""
    old = {"a": TEXTS[:60], "b": TEXTS[60:70]}
    found = compared(tmp_path, old, {**old, "c": TEXTS[70:90]}).alarms
    assert [alarm.message for alarm in found] == ["The source c is 22% of the documents, and was 0%."]
    grown = compared(tmp_path / "grown", old, {**old, "b": TEXTS[60:90]}).alarms
    assert [alarm.message for alarm in grown] == ["The source b is 33% of the documents, and was 14%."]
    assert not compared(tmp_path / "night", old, {"a": TEXTS[:60], "b": TEXTS[60:72]}).alarms
    assert not compared(tmp_path / "one", {"a": TEXTS[:20]}, {"a": TEXTS}).alarms


def night(before: tuple[int, ...], new: int) -> list[str]:
    """The alarms of a night on which a source has so many new documents; another one has a few, as always."""
    arrivals = {"a": (new, *before), "b": (5, 4, 5, 6, 5)}
    overall = SourceDocuments(name="all", old=100, new=100, added=1, gone=0, moved=0)
    found = DataChanges(
        overall=overall, sources=(), sources_changed=0, unmatched="", splits={}, moves={}, gone_because={}, rules=(),
        samples=(), emptied=(), arrivals=arrivals,
    )  # fmt: skip
    return [alarm.message for alarm in found.alarms]


@pytest.mark.parametrize(
    ("before", "new", "message"),
    [
        ((25, 24, 23), 0, "has no new documents, and had 24 a build in the 3 builds before."),
        ((0, 25, 24, 23), 0, "has no new documents for 2 builds, and had 24 a build in the 3 builds before."),
        ((25, 25), 0, ""),  # what is usual is not known yet
        ((25, 0, 25, 25), 0, ""),  # it was silent before, as at a weekend
        ((0, 25, 0, 25, 25), 0, "has no new documents for 2 builds, and had 19 a build in the 4 builds before."),
        ((2, 1, 3, 2), 0, ""),  # so few that none may be chance
        ((0, 0, 0, 0, 2, 1, 3, 2), 0, "has no new documents for 5 builds, and had 2 a build in the 4 builds before."),
        ((25, 24, 23), 50, "has 50 new documents, and had at most 25 in the 3 builds before."),
        ((25, 24, 23), 49, ""),
        ((2, 1, 3), 20, ""),  # a day with news
        ((0, 0, 0, 0), 60, ""),  # it never had any
    ],
)
def test_a_source_that_stops_or_floods_is_an_alarm(before: tuple[int, ...], new: int, message: str) -> None:
    assert night(before, new) == ([f"The source a {message}"] if message else [])


def test_arrivals_go_from_one_build_to_the_next(tmp_path: Path) -> None:
    """A build without any new document does not count; a source that is gone is forgotten."""
    old, earlier = {"a": TEXTS[:40], "b": TEXTS[40:60]}, {"a": (3, 4), "b": tuple(range(1, 20)), "gone": (1,)}
    new = compared(tmp_path, old, {"a": TEXTS[:40], "b": TEXTS[40:70]}, earlier)
    assert new.arrivals == {"a": (0, 3, 4), "b": (10, *range(1, 15))}
    assert compared(tmp_path / "same", old, old, earlier).arrivals == earlier
    assert not compared(tmp_path / "other", old, old, earlier, normalisation="search").arrivals
    unknown = compared(tmp_path / "unknown", old, old, "run demo-1 has no readable review")
    assert "run demo-1 has no readable review" in unknown.unavailable[0] and not unknown.arrivals


def test_documents_that_come_and_are_rejected_are_an_alarm(tmp_path: Path) -> None:
    """In another language, in another encoding, or again: not where as many were rejected before, or by a new rule."""
    english = [f"The minister said on day {number} that the plan would continue." for number in range(30)]
    old = {"a": TEXTS[:60], "b": [*TEXTS[60:80], *english[:20]]}
    more = [*TEXTS[:70], *english[20:30], *english[:15]]
    found = compared(tmp_path, old, {**old, "a": more})
    assert [one.message for one in found.rejected] == [
        "25 of the 35 documents that the source a has more than before are rejected, most as not arabic."
    ]
    assert found.rejected[0].message in [alarm.message for alarm in found.alarms]
    usual = compared(tmp_path / "usual", old, {**old, "b": [*old["b"], *TEXTS[80:90], *english[20:30], *TEXTS[90:92]]})
    assert not usual.rejected
    limit = sorted(map(len, TEXTS))[60]
    (stricter,) = compared(tmp_path / "stricter", old, {**old, "a": more}, min_chars=limit).rejected
    assert stricter.read == 35 >= stricter.rejected and not stricter.rule, "documents that were kept are rejected now"
    assert not compared(tmp_path / "rule", old, {**old, "a": TEXTS[:60]}, min_chars=limit).rejected


def test_new_documents_that_are_cut_are_an_alarm(tmp_path: Path) -> None:
    texts = [" ".join(TEXTS[at : at + 3]) for at in range(117)]
    found = compared(tmp_path, {"a": texts[:60]}, {"a": [*texts[:60], *(text[:40] for text in texts[60:100])]})
    (one,) = found.resized
    assert one.new == 40 and one.message in [alarm.message for alarm in found.alarms]
    assert not compared(tmp_path / "whole", {"a": texts[:60]}, {"a": texts}).resized


def test_a_phrase_in_the_new_documents_is_one_alarm(tmp_path: Path) -> None:
    """Of all sources that have it; of what recurred before, none."""
    header = "تابعوا آخر الأخبار على تطبيقنا وسجلوا في النشرة"
    old = {"a": TEXTS[:30], "b": TEXTS[30:60]}
    new = {name: [*texts, *(f"{header} {text}" for text in TEXTS[start : start + 25])]
           for start, (name, texts) in zip((60, 90), old.items(), strict=True)}  # fmt: skip
    found = compared(tmp_path, old, new)
    assert [(one.source, one.new, one.of_new, one.old) for one in found.phrases] == [("a", 25, 25, 0), ("b", 25, 25, 0)]
    (message,) = (alarm.message for alarm in found.alarms if "تابعوا" in alarm.message)
    assert message.endswith("of a, and in 0% of those before. 1 other source has it as well.")
    assert not compared(
        tmp_path / "again", new, {**new, "a": [*new["a"], *(f"{header} {text}" for text in TEXTS)]}
    ).phrases


def test_held_out_documents_that_come_in_another_form_are_an_alarm(tmp_path: Path) -> None:
    old, new = (prepared(tmp_path / name, {"a": TEXTS}, test=0.3) for name in ("old", "new"))
    held_out = [text for shard in read_split(old.folder, "test") for batch in read_texts(shard)
                for text in batch.column("text").to_pylist()]  # fmt: skip
    forms = [f"الرياض - وكالات: {text.replace('ة', 'ه')} انتهى" for text in held_out]

    def with_seen(corpus: Prepared, name: str, *texts: str) -> Prepared:
        (tmp_path / name).mkdir()
        read(*texts).save(tmp_path / name)
        return corpus._replace(seen=tmp_path / name)

    before, after = with_seen(old, "before", *forms[:3]), with_seen(new, "after", *forms[:9])
    found = data_changes(before, after, 1)
    assert found.held_out == len(held_out) and 6 <= found.met <= 8, "a few sentences of the corpus are nearly the same"
    (alarm,) = found.alarms
    assert alarm.severity == "high" and f"{found.met} of {len(held_out)} documents that both hold out" in alarm.message
    assert not found.unavailable and not data_changes(after, after, 1).alarms
    assert not data_changes(before, with_seen(new, "few", *forms[:5]), 1).alarms, "so few recur by chance"
    assert "were read is not known" in data_changes(old, after, 1).unavailable[0]
