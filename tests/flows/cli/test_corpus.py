"""What a change of a corpus builds again, and the command `qalam corpus`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qalam_core.corpus.prepare import CorpusFacts
from qalam_core.corpus.sources import resolve
from qalam_core.pipeline.build import InPlace, ingested
from qalam_core.pipeline.prepare import Prepare
from qalam_core.recipe import Recipe
from qalam_core.store import Artifact, Store
from tests.conftest import Built, sentences, tiny_recipe
from tests.flows.cli.command import qalam


def prepared(root: Path, folder: Path, **options: Any) -> tuple[list[Artifact], Artifact]:
    data = tiny_recipe(folder).canonical()
    recipe = Recipe.parse({**data, "corpus": {**data["corpus"], **options}})
    executor = InPlace(Store(root))
    documents = ingested(recipe, resolve(recipe.corpus.sources), executor)
    return documents.read, executor.run(Prepare.of(recipe, documents))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for n, name in enumerate("bdf"):
        lines = [
            *sentences(100, seed=n),
            "An English line among them",
            "<b>سلام & تحية</b> مع English words that are more",
        ]
        (folder / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_a_new_file_alone_is_read(tmp_path: Path, folder: Path) -> None:
    root = tmp_path / "store"
    documents, corpus = prepared(root, folder)
    assert not corpus.cached
    documents, corpus = prepared(root, folder)
    assert corpus.cached
    for name in "ace":  # before, between, after
        (folder / f"{name}.txt").write_text("\n".join(sentences(25, seed=ord(name))), encoding="utf-8")
        documents, corpus = prepared(root, folder)
        fresh = [artifact for artifact in documents if not artifact.cached]
        assert len(fresh) == 1
        assert not corpus.cached


def test_a_changed_setting_prepares_the_same_documents_again(tmp_path: Path, folder: Path) -> None:
    root = tmp_path / "store"
    prepared(root, folder)
    for options in (
        {"thresholds": {"min_alphabetic": 0.6}}, {"filters": "none"}, {"near_duplicates": False}, {"repair": True},
        {"sources": [{"path": str(folder), "name": "stories", "filters": "prose"}], "thresholds": {"min_words": 3}},
    ):  # fmt: skip
        documents, corpus = prepared(root, folder, **options)
        assert all(artifact.cached for artifact in documents)
        assert not corpus.cached


def test_counts_and_rejected_documents(tmp_path: Path, folder: Path) -> None:
    root = tmp_path / "store"
    _, corpus = prepared(root, folder)
    done = qalam("corpus", root)
    assert done.returncode == 0, done.stderr
    rows = {line.rpartition("  ")[0].strip(): line.split()[-1] for line in done.stdout.splitlines()[1:]}
    facts = corpus.facts(CorpusFacts)
    assert (rows["read"], rows["kept"]) == (f"{facts.read}", f"{facts.kept}")
    assert rows["not arabic"] == f"{facts.rejected['not_arabic']}" == "6"
    assert f"{facts.splits['test'].documents}" in done.stdout

    counts = json.loads(qalam("corpus", "--json", "--store", root).stdout)
    assert counts == {"corpus": corpus.digest, **facts.canonical()}

    done = qalam("corpus", root, "--rejects", "not_arabic", "--count", "2")
    assert done.stdout.splitlines()[0] == "not_arabic: 6 documents"
    assert "stories: \u2067<b>سلام & تحية</b> مع English words that are more\u2069" in done.stdout
    shown = json.loads(qalam("corpus", root, "--rejects", "not arabic", "--json").stdout)
    assert len(shown) == 5  # unless --count says another number
    assert {row["source"] for row in shown} == {"stories"}


def test_damage_is_shown_for_each_source(tmp_path: Path) -> None:
    lines = [line.encode() + b" \xff" * (n % 3 == 0) for n, line in enumerate(sentences(90))]
    records = [json.dumps({"text": line}) for line in sentences(60, seed=1)]
    (tmp_path / "old.txt").write_bytes(b"\n".join(lines))
    (tmp_path / "records.jsonl").write_text("\n".join([*records, '{"text": null}', '{"text": null}']))
    sources = [
        {"path": str(tmp_path / "old.txt"), "encoding_errors": "replace"}, {"path": str(tmp_path / "records.jsonl")},
    ]  # fmt: skip
    prepared(tmp_path / "store", tmp_path / "old.txt", sources=sources)
    rows = [line.split() for line in qalam("corpus", tmp_path / "store").stdout.splitlines()]
    assert ["replaced", "bytes", "(U+FFFD)", "30", "30", "0"] in rows
    assert ["records", "skipped", "(null)", "2", "0", "2"] in rows
    assert ["damaged", "30", "30", "0"] in rows
    counts = json.loads(qalam("corpus", "--json", tmp_path / "store").stdout)
    assert (counts["replaced"], counts["skipped_null"], counts["cut"]) == (30, 2, 0)
    assert counts["sources"]["old"]["replaced"] == counts["sources"]["records"]["skipped_null"] + 28
    [shown] = json.loads(qalam("corpus", tmp_path / "store", "--rejects", "damaged", "--count", "1", "--json").stdout)
    assert "\ufffd" in shown["text"]


def test_errors_are_one_line(tmp_path: Path) -> None:
    for arguments, part in (
        (["--store", tmp_path / "none"], "has no prepared corpus yet; `qalam build RECIPE` makes one"),
        (["no-run", "--store", tmp_path / "none"], "run 'no-run' is not in"),
        (["--rejects", "min_wrds"], "--rejects min_wrds: unknown rule"),
    ):
        done = qalam("corpus", *arguments)
        assert done.returncode == 2
        assert part in done.stderr
        assert "Traceback" not in done.stderr


def test_the_overlap_with_the_training_text_is_shown(built: Built) -> None:
    done = qalam("corpus", built.published.run, "--store", built.store.root)
    assert done.returncode == 0, done.stderr
    assert "are in n-grams of 13 words that the model, or one before it, has read" in done.stdout
