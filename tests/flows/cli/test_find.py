"""The commands `qalam trace` and `qalam find`."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qalam_core.arabic import NORMALISATIONS, normalise
from qalam_core.corpus.sources import resolve
from qalam_core.corpus.splits import read_split, read_texts
from qalam_core.errors import CorpusError, StoreError
from qalam_core.files import replace_file
from qalam_core.pipeline import find
from qalam_core.pipeline.build import InPlace, ingested
from qalam_core.pipeline.find import trace
from qalam_core.pipeline.prepare import Prepare
from qalam_core.recipe import Recipe
from qalam_core.runs import Ancestor
from tests.conftest import Built, tiny_recipe
from tests.flows.cli.command import qalam


def split_of(built: Built, split: str) -> list[tuple[str, str]]:
    """(id, text) of a split's documents."""
    corpus = built.store.reference("prepare", built.runs.record(built.published.run).artifacts["prepare"][0])
    batches = [batch for shard in read_split(corpus.path, split) for batch in read_texts(shard)]
    return [(row["id"], row["text"]) for batch in batches for row in batch.to_pylist()]


def test_a_training_document_is_found_in_the_middle_of_a_text(built: Built) -> None:
    name, text = split_of(built, "train")[3]
    run, asked = built.published.run, f"قالت المحررة أمس:\n\n{text}\nوهذا كله."
    found = json.loads(qalam("trace", run, asked, "--json", "--store", built.store.root).stdout)
    whole = [span for span in found["spans"] if span["text"] == text]
    assert len(whole) == 1
    assert (whole[0]["start_word"], whole[0]["end_word"]) == (3, 3 + len(text.split()))
    assert whole[0]["count"] == 1
    assert whole[0]["documents"] == [
        {"run": run, "source": "stories", "id": name, "shard": "train-00000.arrow", "before": "", "after": ""}
    ]
    assert (found["words"], found["covered"]) == (len(asked.split()), len(text.split()))
    assert (found["searched"], found["not_searched"]) == ([run], [])

    done = qalam("trace", run, asked, "--store", built.store.root)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "\u2068قالت المحررة أمس:\u2069"
    assert lines[1] == f"\u2068[1 {text} 1]\u2069"
    assert lines[2] == "\u2068وهذا كله.\u2069"
    assert name in done.stdout
    assert f"{found['covered']} of {found['words']} words" in done.stdout


def test_texts_from_a_file_and_from_standard_input(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, text = split_of(built, "train")[0]
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8")
    found = json.loads(qalam("trace", built.published.run, f"@{file}", "--json", "--store", built.store.root).stdout)
    assert found["covered"] == len(text.split())
    with file.open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        again = qalam("trace", built.published.run, "-", "--json", "--store", built.store.root)
    assert json.loads(again.stdout) == found


def test_a_text_without_spans_says_so(built: Built) -> None:
    done = qalam("trace", built.published.run, "نص لم يقرأه أحد من قبل أبدا", "--store", built.store.root)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "0 of 7 words (0.0%) are in spans of at least 5 words that are in the training text of " + built.published.run
    ]


def test_control_characters_do_not_reach_the_terminal(built: Built) -> None:
    _, text = split_of(built, "train")[0]
    done = qalam("trace", built.published.run, f"\x1b[31m \u202e{text}\x1b]0;x\x07", "--store", built.store.root)
    assert done.returncode == 0
    assert not {"\x1b", "\x07", "\u202e"} & set(done.stdout)


def test_held_out_documents_are_not_training_text(built: Built) -> None:
    for _, text in split_of(built, "test")[:3]:
        found = trace(built.runs, built.published.run, text)
        assert found.covered < len(text.split())


@pytest.mark.parametrize("text", ["", " \n\u3000", "@/no/such/file", "@/"])
def test_errors_are_one_line(built: Built, text: str) -> None:
    done = qalam("trace", built.published.run, text, "--store", built.store.root)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_a_text_of_marks_alone_has_no_spans(built: Built) -> None:
    assert trace(built.runs, built.published.run, "\u064b \u0640 \u200b").spans == ()
    with pytest.raises(CorpusError, match="not UTF-8"):
        trace(built.runs, built.published.run, "\udcff")


def test_a_deleted_or_damaged_training_text_is_not_an_empty_one(mine: Built) -> None:
    run = mine.published.run
    corpus = mine.store.reference("prepare", mine.runs.record(run).artifacts["prepare"][0])
    (shard,) = read_split(corpus.path, "train")
    content = shard.read_bytes()
    shard.chmod(0o644)
    shard.write_bytes(content.replace(b" ", b"\n"))
    with pytest.raises(StoreError, match="was deleted or is damaged; build its recipe again"):
        trace(mine.runs, run, "قال")
    shutil.rmtree(corpus.path)
    done = qalam("trace", run, "قال", "--store", mine.store.root)
    assert done.returncode == 2
    assert "was deleted or is damaged; build its recipe again" in done.stderr


def test_ancestors_are_searched_in_their_own_normalisation(mine: Built, tmp_path: Path) -> None:
    """A parent with vowel marks and another text, and a grandparent whose text is gone."""
    text = "ذَهَبَ الوَلَدُ إلى السُّوقِ مع أبيهِ ﷺ ثُمَّ عادَ إلى البيتِ مساءً"
    (tmp_path / "old.txt").write_text("\n".join([text, *(text_ for _, text_ in split_of(mine, "train"))]), "utf-8")
    data = tiny_recipe(tmp_path / "old.txt").canonical()
    data["corpus"] |= {"normalisation": "vocalised"}
    recipe = Recipe.parse(data)
    executor = InPlace(mine.store)
    stage = Prepare.of(recipe, ingested(recipe, resolve(recipe.corpus.sources), executor))
    settings = stage.settings.model_copy(update={"test": 0.0, "validation": 0.0})
    corpus = executor.run(replace(stage, settings=settings))
    run = mine.published.run
    record = mine.runs.record(run)
    common = {"package": "", "seen": "", "documents": {}, "changes": (), "accepted": ()}
    lineage = (Ancestor(run="parent", corpus=corpus.digest, **common), Ancestor(run="old", corpus="0" * 64, **common))
    record = record.model_copy(update={"lineage": lineage})
    replace_file(mine.runs.folder(run) / "run.json", record.to_json())

    found = trace(mine.runs, run, text)
    assert (found.searched, found.missing) == ((run, "parent"), ("old",))
    (span,) = found.spans
    assert (span.start_word, span.end_word, span.count) == (0, len(text.split()), 1)
    assert span.documents[0].run == "parent"
    assert found.covered == len(text.split())
    assert trace(mine.runs, run, text.replace("\u064f", "")).covered == 3  # ﷺ stands for four words

    own, (_, known) = run, split_of(mine, "train")[5]
    whole = max(trace(mine.runs, run, known).spans, key=lambda span: span.end_word - span.start_word)
    assert [one.run for one in whole.documents] == [own, "parent"]
    done = qalam("trace", run, text, "--store", mine.store.root)
    assert "not searched, as their training text was deleted or is damaged: old" in done.stdout
    assert "parent/train-00000.arrow" in done.stdout


letters = st.sampled_from("اب\u064b\u0640 \n\t\xa0\x1c\x1f\x85\u2028\u3000\u200b\xa8ﷺ\u0308")


@given(st.text(letters | st.characters(exclude_categories=["Cs"])))
def test_words_are_normalised_alone_as_in_their_text(text: str) -> None:
    for rules in NORMALISATIONS.values():
        apart = [part for word in find._WORD.findall(text) for part in normalise(word, rules).split()]
        assert apart == normalise(text, rules).split()


def test_a_text_is_found_whole_in_part_and_as_written_otherwise(built: Built) -> None:
    _, text = split_of(built, "train")[4]
    run, words = built.published.run, text.split()
    marked = " ".join(word[0] + "\u064e" + word[1:] for word in words).replace("،", " -")
    for asked in (text, marked):
        found = find.find(built.runs, asked)
        assert (list(found.readers), found.clear, found.unknown) == ([run], (), ())
        assert found.readers[run].exactly
        best = found.places[0]
        source = Path(built.recipe.corpus.sources[0].path)
        assert (best.file, best.source, best.meeting.exactly) == (str(source), "stories", True)
        line = source.read_text(encoding="utf-8").splitlines()[best.document - 1]
        assert normalise(json.loads(line)["text"]) == text
    found = find.find(built.runs, " ".join(words[1:10]))
    assert not found.readers[run].exactly
    assert found.readers[run].words_8 == 1.0
    assert found.places[0].meeting.words_8
    # what was held out was not read as a whole
    whole = [find.find(built.runs, held_out).readers.get(run) for _, held_out in split_of(built, "test")[:5]]
    assert not any(meeting and meeting.exactly for meeting in whole)


def test_find_on_the_command_line(built: Built) -> None:
    _, text = split_of(built, "train")[4]
    run, root = built.published.run, built.store.root
    done = qalam("find", text, "--store", root)
    assert done.returncode == 0, done.stderr
    assert any(line.startswith(run) and "yes" in line and "100.0%" in line for line in done.stdout.splitlines())
    assert "1 of 1 run met the text" in done.stdout
    found = json.loads(qalam("find", text, "--store", root, "--json").stdout)
    assert found["readers"][run]["exactly"]
    done = qalam("find", "نص لم يقرأه أحد", "--store", root)
    assert done.stdout.splitlines() == [
        "0 of 1 run met the text, themselves or through an ancestor",
        "a text of 4 words is compared with documents and lines; from 8 words on, with parts too",
    ]
    for nothing in ("", "…!"):
        done = qalam("find", nothing, "--store", root)
        assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)


def test_a_run_without_a_record_is_not_clear(mine: Built) -> None:
    _, text = split_of(mine, "train")[4]
    run = mine.published.run
    record = mine.runs.record(run)
    shutil.rmtree(mine.store.artifact_folder("seen", record.artifacts["seen"][0]))
    found = find.find(mine.runs, text)
    assert (found.readers, found.clear, found.unknown) == ({}, (), (run,))
    assert found.places[0].meeting.exactly  # its documents are searched all the same
    assert f"no record is left that tells: {run}" in qalam("find", text, "--store", mine.store.root).stdout
    shutil.rmtree(mine.store.artifact_folder("ingest", record.artifacts["ingest"][0]))
    found = find.find(mine.runs, text)
    assert (found.places, found.deleted) == ((), 1)


def test_a_source_that_is_gone_is_named_by_its_digest(mine: Built, tmp_path: Path) -> None:
    _, text = split_of(mine, "train")[4]
    record = mine.runs.record(mine.published.run)
    data = record.canonical()
    data["recipe"]["corpus"]["sources"][0]["path"] = str(tmp_path / "gone.jsonl")
    moved = type(record).model_validate(data)
    replace_file(mine.runs.folder(mine.published.run) / "run.json", moved.to_json())
    (artifact,) = (mine.store.reference("ingest", key) for key in record.artifacts["ingest"])
    assert find.find(mine.runs, text).places[0].file == f"sha256 {artifact.manifest.inputs['file']}"
