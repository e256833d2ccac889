"""User errors: each raises the right class with a one-line message, and costs no artifact."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from qalam_core import package
from qalam_core.corpus.prepare import CorpusFacts
from qalam_core.corpus.sources import resolve
from qalam_core.corpus.splits import SPLITS, read_split, read_texts
from qalam_core.corpus.writer import IngestFacts
from qalam_core.errors import CorpusError, DamagedError, PackageError, QalamError, StoreError, TrainingError
from qalam_core.files import sha256_file
from qalam_core.pipeline.build import InPlace, build, ingested, tokenized
from qalam_core.pipeline.prepare import Prepare
from qalam_core.recipe import Recipe
from qalam_core.runs import Runs
from qalam_core.store import Artifact, Store
from tests.conftest import sentences, tiny_recipe


@pytest.fixture(scope="module")
def prepared(corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[Artifact]]:
    """A store with the first half of a good build, whose artifacts no test may lose."""
    store = Store(tmp_path_factory.mktemp("prepared") / "store")
    return store, list(first_half(tiny_recipe(corpus_file), store))


@pytest.fixture
def shared(prepared: tuple[Store, list[Artifact]], corpus_file: Path) -> Iterator[Store]:
    store, before = prepared
    yield store
    after = list(first_half(tiny_recipe(corpus_file), store))
    assert after == before
    assert all(artifact.cached for artifact in after)


def first_half(recipe: Recipe, store: Store) -> Iterator[Artifact]:
    """The stages before training, which are quick."""
    documents = ingested(recipe, resolve(recipe.corpus.sources), InPlace(store))
    corpus, tokenizer, tokens, _ = tokenized(recipe, documents, InPlace(store))
    yield from (*documents.read, *documents.filtered, corpus, tokenizer, *tokens)


def texts(documents: list[Artifact]) -> list[str]:
    with pa.OSFile(str(documents[0].path / "documents.arrow")) as file, pa.ipc.open_file(file) as reader:
        found: list[str] = reader.read_all().column("text").to_pylist()
    return found


def refusal(what: Callable[[], object], kind: type[QalamError], *parts: str) -> str:
    """The one-line message that `what` raises, as exactly this class, with all `parts`."""
    with pytest.raises(QalamError) as caught:
        what()
    assert type(caught.value) is kind
    text = str(caught.value)
    assert text
    assert text.splitlines() == [text]
    assert len(text) < 1000
    for part in parts:
        assert part in text
    return text


def source(path: Path, **keys: Any) -> dict[str, Any]:
    return {"sources": [{"path": str(path), **keys}], "test": 0.1, "validation": 0.1}


def with_corpus(corpus: dict[str, Any]) -> Recipe:
    return Recipe.parse({**tiny_recipe(Path("unused")).canonical(), "corpus": corpus})


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


GOOD = "\n".join(sentences(40)) + "\n"
LINE = sentences(1)[0]
RANDOM = random.Random(5)
BINARY = bytes(RANDOM.randrange(1, 256) for _ in range(5000))  # no NUL that would give it away


# -- corpora --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "keys", "parts"),
    [
        ("gone.txt", None, {}, ["gone.txt: no such file", "corpus.sources.path"]),
        ("empty.txt", b"", {}, ["empty.txt: holds no documents"]),
        ("empty.jsonl", b"", {}, ["empty.jsonl: holds no documents"]),
        ("empty.json", b"", {}, ["empty.json: holds no documents"]),
        ("empty.csv", b"", {}, ["empty.csv: holds no documents"]),
        ("empty.parquet", b"", {}, ["empty.parquet: holds no documents"]),
        ("blank.txt", "\n \n\u2003\n\t\n", {}, ["blank.txt: holds no documents"]),
        ("short.txt", "قصير\n" * 3 + "نص\n", {"name": "notes"},
         ["notes: a source with no usable documents", "too_short", "corpus.min_chars is 20"]),
        ("latin.txt", "not one letter of Arabic in here\nand none in this line either\n", {},
         ["latin: a source with no usable documents", "not_arabic", "corpus.min_arabic"]),
        ("few.txt", LINE + "\n", {}, ["1 documents are too few to split", "add text"]),
        ("latin1.txt", GOOD.encode() + b"caf\xe9 is not UTF-8\n", {},
         ["latin1.txt: byte ", 'encoding_errors = "replace"']),
        ("cut.txt", GOOD.encode()[:-2], {}, None),  # ends within no character: it is fine
        ("binary.txt", BINARY, {}, ["binary.txt: byte ", "is not UTF-8"]),
        ("nul.txt", b"\x7fELF\0\0\0" + BINARY, {}, ["nul.txt: byte 4 is NUL"]),
        ("utf16.txt", GOOD.encode("utf-16"), {}, ["is UTF-16", "set encoding"]),
        ("picture.png", BINARY, {}, ["picture.png: unknown suffix"]),
        ("binary.jsonl", BINARY, {}, ["binary.jsonl"]),
        ("binary.parquet", BINARY, {}, ["binary.parquet: truncated or damaged Parquet file"]),
        ("binary.arrow", BINARY, {}, ["binary.arrow: truncated or damaged Arrow file"]),
        ("binary.txt.gz", BINARY, {}, ["binary.txt.gz: damaged gzip file"]),
        ("fields.jsonl", '{"text": "' + LINE + '"}\n{"body": "' + LINE + '"}\n', {},
         ["fields.jsonl:2: no field 'text'", "there are: body"]),
        ("number.jsonl", '{"text": 17}\n', {}, ["number.jsonl:1: field 'text' is a number, not text"]),
        ("list.jsonl", '["' + LINE + '"]\n', {}, ["list.jsonl:1: no field 'text' (it is a list)"]),
        ("broken.jsonl", '{"text": "' + LINE + '"}\n{"text": \n', {}, ["broken.jsonl:2: not JSON at column"]),
        ("null.jsonl", '{"text": null}\n', {}, ["null.jsonl: holds no documents", "'text' is null"]),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isascii() and "\n" not in value else "",
)  # fmt: skip
def test_a_corpus_that_cannot_be_used(
    shared: Store, tmp_path: Path, name: str, content: bytes | str | None, keys: dict[str, Any], parts: list[str] | None
) -> None:
    path = tmp_path / name
    if content is not None:
        write(path, content)
    recipe = with_corpus(source(path, **keys))
    if parts is None:
        list(first_half(recipe, shared))
    else:
        refusal(lambda: list(first_half(recipe, shared)), CorpusError, *parts)


def test_one_bad_source_among_good_ones_is_named(shared: Store, corpus_file: Path, tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.txt", b"\xff" + GOOD.encode())
    recipe = with_corpus({"sources": [{"path": str(corpus_file)}, {"path": str(bad)}], "test": 0.1})
    refusal(lambda: build(recipe, shared), CorpusError, f"{bad}: byte 0 is not UTF-8")


@pytest.mark.parametrize("name", ["text.txt", "text.jsonl"])
@pytest.mark.parametrize("before", [0, 3_000_001])  # in the first block that is read, and beyond it
def test_bytes_that_are_not_utf8_are_named_by_offset(shared: Store, tmp_path: Path, name: str, before: int) -> None:
    filling = (b" " * 99 + b"\n") * (before // 100)
    start = b'{"text": "' if name.endswith("jsonl") else b""
    path = write(tmp_path / name, filling + start + "سطر ".encode() + b"\xc3\x28\n")
    place = len(filling + start + "سطر ".encode())
    recipe = with_corpus(source(path))
    refusal(lambda: list(first_half(recipe, shared)), CorpusError, f"{path}: byte {place} is not UTF-8")


@pytest.mark.parametrize("name", ["text.txt", "text.jsonl"])
def test_with_replace_they_become_the_replacement_character(shared: Store, tmp_path: Path, name: str) -> None:
    lines = [line.encode() + b" \xff\xfe \xd9" for line in sentences(60)]  # two strays, and half a letter
    if name.endswith("jsonl"):
        lines = [b'{"text": "' + line + b'"}' for line in lines]
    path = write(tmp_path / name, b"\n".join(lines) + b"\n")
    recipe = with_corpus({**source(path, encoding_errors="replace"), "max_damaged": 0.5})
    built = list(first_half(recipe, shared))
    assert built[0].facts(IngestFacts).replaced == 60
    assert texts(built) == [f"{line} \ufffd\ufffd \ufffd" for line in sentences(60)]
    assert next(made for made in built if made.stage == "prepare").facts(CorpusFacts).kept == 60


@pytest.mark.parametrize("name", ["marked.txt", "marked.jsonl", "marked.csv"])
def test_a_byte_order_mark_disappears(shared: Store, tmp_path: Path, name: str) -> None:
    content = {
        "marked.txt": GOOD,
        "marked.jsonl": "".join(json.dumps({"text": line}) + "\n" for line in sentences(40)),
        "marked.csv": "text\n" + GOOD,
    }[name]
    recipe = with_corpus(source(write(tmp_path / name, b"\xef\xbb\xbf" + content.encode())))
    assert texts(list(first_half(recipe, shared))) == sentences(40)


def test_files_that_are_found_empty_are_passed_over_and_counted(shared: Store, tmp_path: Path) -> None:
    write(tmp_path / "good.jsonl", "".join(json.dumps({"text": line}) + "\n" for line in sentences(40)) + "{\n")
    write(tmp_path / "empty.txt", "\n")
    recipe = with_corpus(source(tmp_path, name="all", bad_records="skip"))
    facts = next(made for made in first_half(recipe, shared) if made.stage == "prepare").facts(CorpusFacts)
    counts = facts.sources["all"]
    assert (counts.read, counts.skipped, counts.passed_over) == (40, 1, 1)


def test_a_folder_of_empty_files_is_an_error(shared: Store, corpus_file: Path, tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "")
    write(tmp_path / "b.jsonl", '{"text": null}\n')
    recipe = with_corpus({"sources": [{"path": str(corpus_file)}, {"path": str(tmp_path), "name": "e"}], "test": 0.1})
    refusal(
        lambda: list(first_half(recipe, shared)), CorpusError, "e: none of the files of this source holds a document"
    )


MEASURED = """
import resource, sys
from pathlib import Path
from qalam_core.corpus.sources import resolve
from qalam_core.pipeline.build import InPlace, ingested
from qalam_core.pipeline.prepare import Prepare
from qalam_core.recipe import Recipe
from qalam_core.store import Store

recipe, store = Recipe.model_validate_json(sys.argv[1]), Store(Path(sys.argv[2]))
files = resolve(recipe.corpus.sources)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store.build(Prepare.of(recipe, ingested(recipe, files, InPlace(store))))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("name", ["huge.txt", "huge.jsonl"])
@pytest.mark.usefixtures("processes")
def test_a_line_of_100_mb_takes_bounded_memory(tmp_path: Path, name: str) -> None:
    lines = sentences(60)
    start, end = (b'{"text": "', b'"}') if name.endswith("jsonl") else (b"", b"")
    with (tmp_path / name).open("wb") as file:
        file.write(start)
        for _ in range(100):
            file.write("كلمة ".encode() * 111_111)
        file.write(end + b"\n")
        for line in lines:
            file.write(start + line.encode() + end + b"\n")
    assert (tmp_path / name).stat().st_size > 99_000_000
    recipe, store = with_corpus(source(tmp_path / name)), Store(tmp_path / "store")
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, recipe.model_dump_json(), str(store.root)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 300  # MB; the line alone is 100, and 400 as Python's text
    documents = ingested(recipe, resolve(recipe.corpus.sources), InPlace(store))
    assert all(artifact.cached for artifact in (*documents.read, *documents.filtered))
    corpus = store.build(Prepare.of(recipe, documents))
    facts = corpus.facts(CorpusFacts)
    assert facts.rejected == {"too_long": 1}
    assert facts.kept == len(lines)
    kept = [t for s in SPLITS for p in read_split(corpus.path, s) for b in read_texts(p)
            for t in b.column("text").to_pylist()]  # fmt: skip
    assert sorted(kept) == sorted(lines)


# -- settings that do not fit the data ------------------------------------------------------------


@pytest.mark.usefixtures("processes")
def test_a_context_longer_than_any_data(shared: Store, corpus_file: Path) -> None:
    recipe = tiny_recipe(corpus_file, model={"max_seq_len": 100_000, "dim": 8})
    refusal(lambda: build(recipe, shared), TrainingError, "context of 100000 tokens", "lower model.max_seq_len")


@pytest.mark.usefixtures("processes")
def test_a_loss_that_is_nan_at_once(shared: Store, corpus_file: Path) -> None:
    recipe = tiny_recipe(corpus_file, train={"learning_rate": 1e30, "clip": 1e30})
    refusal(
        lambda: build(recipe, shared), TrainingError,
        "the loss became nan at step 2;", "there is no checkpoint yet", "lower train.learning_rate",
    )  # fmt: skip


@pytest.mark.usefixtures("processes")
def test_a_loss_that_is_nan_later_keeps_the_last_good_checkpoint(shared: Store, corpus_file: Path) -> None:
    # each step multiplies the matrices by 1 - 0.01 * 400, until float32 overflows
    recipe = tiny_recipe(corpus_file, train={"weight_decay": 400.0, "warmup": 0.0, "dtype": "float32"})
    line = refusal(
        lambda: build(recipe, shared), TrainingError,
        "at step ", "the last good checkpoint, of step 20, is kept", "lower train.learning_rate",
    )  # fmt: skip
    assert 20 < int(line.partition("at step ")[2].partition(";")[0]) <= 40
    kept = [path.name for path in (shared.root / "artifacts" / "train").glob("*.partial/checkpoint-*")]
    assert kept == ["checkpoint-000000020.safetensors"]
    assert refusal(lambda: build(recipe, shared), TrainingError) == line  # it continued from there to the same error


@pytest.mark.usefixtures("processes")
def test_non_finite_weights_are_never_saved(shared: Store, corpus_file: Path) -> None:
    """The loss of the last step is still finite: it is that of the weights before the step."""
    recipe = tiny_recipe(
        corpus_file, train={"steps": 1, "learning_rate": 1e38, "weight_decay": 100.0, "warmup": 0.0}
    )  # fmt: skip
    refusal(lambda: build(recipe, shared), TrainingError, "the weights stopped being finite by step 1")


# -- wrong kinds of files -------------------------------------------------------------------------


@pytest.mark.parametrize("manifest", [None, "", "{}", "[1, 2]", '{"format": 999}', "\ufeff{}", "[" * 100_000])
def test_a_folder_that_is_not_a_package(tmp_path: Path, manifest: str | None) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    if manifest is not None:
        write(folder / "manifest.json", manifest)
    refusal(lambda: package.read(folder), PackageError)
    refusal(lambda: package.verify(folder), PackageError)


def test_a_path_that_is_not_a_folder(tmp_path: Path) -> None:
    refusal(lambda: package.read(tmp_path / "gone"), PackageError, "gone: not a folder")
    refusal(lambda: package.read(write(tmp_path / "file", "x")), PackageError, "file: not a folder")


def test_a_store_that_is_a_file(corpus_file: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "notes.txt", "mine")
    refusal(lambda: Store(file).ensure_writable(), StoreError, "notes.txt")
    refusal(lambda: build(tiny_recipe(corpus_file), Store(file)), StoreError, "notes.txt", "--store")
    assert file.read_text() == "mine"


@pytest.mark.parametrize("record", ["", "{", "[]", "\x00" * 64])
def test_a_damaged_run_record_is_named(tmp_path: Path, record: str) -> None:
    store = Store(tmp_path)
    folder = tmp_path / "runs" / "tiny-0123"
    folder.mkdir(parents=True)
    write(folder / "run.json", record)
    runs = Runs(store)
    refusal(lambda: runs.record("tiny-0123"), DamagedError, "tiny-0123", "run.json")
    refusal(runs.ids, DamagedError, "tiny-0123")


@pytest.mark.parametrize("history", ["{", "[]\n", "\x00" * 64])
def test_a_damaged_champion_history_is_named(tmp_path: Path, history: str) -> None:
    store = Store(tmp_path)
    file = tmp_path / "champions" / "tiny.jsonl"
    file.parent.mkdir()
    write(file, history)
    before = sha256_file(file)
    refusal(lambda: Runs(store).champion("tiny"), DamagedError, "tiny.jsonl:1")
    assert sha256_file(file) == before
