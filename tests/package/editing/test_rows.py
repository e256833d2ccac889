from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFace

from qalam_core.errors import PackageError
from qalam_core.package import generate, read, verify
from qalam_core.package.editing.rows import add_token, copy_row, find_row, scale_row, set_row, set_value
from qalam_core.package.editing.seal import seal
from qalam_core.package.runtime.numpy_model import NumpyTransformer
from qalam_core.package.runtime.rows import MATRIX_TYPES
from qalam_core.package.runtime.tokenizer import Tokenizer
from qalam_core.tokens.tokenizer import ArabicTokenizer
from tests.conftest import examples, sentences
from tests.importing import import_it
from tests.small_package import CONFIG, WORDS, contents, edit, export, row_of, vocabulary, weights

EMBEDDING = "embedding.weight"
ROW = [0.5, -1.0, 0.002, 0.0, 0.25, 150.0, 1 / 3, 7.0]


def changed_lines(before: bytes, after: bytes) -> list[tuple[bytes, bytes]]:
    """(old, new) of each line that differs; no line may be added or removed."""
    old, new = before.split(b"\n"), after.split(b"\n")
    return [(first, second) for first, second in zip(old, new, strict=True) if first != second]


def real_package(folder: Path, algorithm: str, tied: bool = True) -> Path:
    """A package with a trained tokenizer."""
    trained = ArabicTokenizer(330, algorithm)  # type: ignore[arg-type]
    trained.build_vocab(sentences(40), min_freq=1)
    return export(folder, config=replace(CONFIG, vocab_size=len(trained), tied=tied), vocabulary=trained.vocabulary)


def encoders(folder: Path) -> tuple[Callable[[str], list[int]], Callable[[str], list[int]]]:
    package = read(folder)
    ours = Tokenizer(package.vocabulary)
    theirs = HuggingFace.from_str(package.tokenizer_json)
    theirs.encode_special_tokens = True
    return ours.encode, lambda text: theirs.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("dtype", list(MATRIX_TYPES))
def test_set_row_changes_only_the_line_of_the_row(tmp_path: Path, dtype: str) -> None:
    folder = export(tmp_path / "model", dtype=dtype)
    before, old = contents(folder), read(folder).weights[EMBEDDING][5]
    change = set_row(folder, EMBEDDING, "يأكل", ROW)
    wanted = np.array(ROW, np.float32)
    assert np.array_equal(row_of(folder, EMBEDDING, 5), wanted)
    assert verify(folder) == ['embedding.weight: 1 of 12 rows changed since export: 5 ("يأكل")']
    after = contents(folder)
    assert len(changed_lines(before.pop("weights.py"), after.pop("weights.py"))) == 1
    assert before == after
    line = (folder / "weights.py").read_text(encoding="utf-8").split("\n")[change.line - 1]
    assert (line.strip().startswith("[")) == (dtype != "f32")  # only float32 states 1/3 without a list of numbers
    assert change.moved == pytest.approx(float(np.linalg.norm(wanted.astype(np.float64) - old)))
    assert str(change).startswith(f'weights.py:{change.line}: embedding.weight row 5 ("يأكل") moved by ')


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_exact_values_are_written_in_the_storage_type(tmp_path: Path, dtype: str) -> None:
    folder = export(tmp_path / "model", dtype=dtype)
    scale_row(folder, EMBEDDING, 5, 0.5)
    text = (folder / "weights.py").read_text(encoding="utf-8")
    assert "[" not in text


floats = st.floats(-1024, 1024, width=32)
names = st.sampled_from([*weights()])


@settings(max_examples=examples(12), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([*MATRIX_TYPES]), st.lists(st.tuples(names, st.integers(0, 7), floats), min_size=1, max_size=4))
def test_verify_reports_exactly_the_edited_rows(
    tmp_path: Path, dtype: str, edits: list[tuple[str, int, float]]
) -> None:
    folder = tmp_path / dtype
    if not folder.exists():
        export(folder, dtype=dtype)
    exported = contents(folder)
    original = read(folder).weights
    expected = {name: tensor.copy() for name, tensor in original.items()}
    for name, row, value in edits:
        set_value(folder, name, row, 0, value)
        expected[name].reshape(len(expected[name]), -1)[row, 0] = value
    package = read(folder)
    for name, tensor in expected.items():
        assert package.weights[name].tobytes() == tensor.tobytes(), name
    edited = {name for name in expected if expected[name].tobytes() != original[name].tobytes()}
    assert {sentence.split(":")[0] for sentence in verify(folder)} - {"weights.py"} == edited
    for name in edited:
        differs = expected[name].view(np.uint32) != original[name].view(np.uint32)
        rows = np.flatnonzero(differs.reshape(len(differs), -1).any(1))
        sentence = next(sentence for sentence in verify(folder) if sentence.startswith(f"{name}:"))
        assert sentence.startswith(f"{name}: {len(rows)} of {len(differs)} rows changed since export: {rows[0]}")
    for name, text in exported.items():
        (folder / name).write_bytes(text)


def test_a_list_of_numbers_keeps_its_digits_and_comment(package: Path) -> None:
    lines = (package / "weights.py").read_text(encoding="utf-8").split("\n")
    start = next(number for number, line in enumerate(lines) if f'"{EMBEDDING}"' in line) + 1
    lines[start + 5] = "    [0.5000, -1, 2e-3, 0, 0.25, 1.5e+2, -0.0, 7],  # by hand"
    lines[start + 3] += "\n\n   # a note"
    (package / "weights.py").write_bytes("\n".join(lines).encode())
    change = set_value(package, EMBEDDING, 5, 2, -0.125)
    assert change.line == start + 8
    text = (package / "weights.py").read_text(encoding="utf-8").split("\n")
    assert text[change.line - 1] == "    [0.5000, -1, -0.125, 0, 0.25, 1.5e+2, -0.0, 7],  # by hand"


def test_scale_row_and_copy_row(package: Path) -> None:
    before = read(package).weights[EMBEDDING]
    scale_row(package, EMBEDDING, "القط", 2)
    copy_row(package, EMBEDDING, "السمك", "يأكل")
    after = read(package).weights[EMBEDDING]
    assert np.array_equal(after[4], before[4] * 2)
    assert np.array_equal(after[6], before[5])
    change = set_value(package, "ln_out.bias", 2, 0, -3)
    assert row_of(package, "ln_out.bias", 2) == -3
    assert (package / "weights.py").read_text(encoding="utf-8").split("\n")[change.line - 1] == "        -3.0,"
    assert scale_row(package, EMBEDDING, 7, 1).moved == 0


def test_copying_an_integer_row_copies_its_text(tmp_path: Path) -> None:
    folder = export(tmp_path / "model", dtype="q8")
    change = copy_row(folder, EMBEDDING, 6, 5)
    lines = (folder / "weights.py").read_text(encoding="utf-8").split("\n")
    assert lines[change.line - 1] == lines[change.line - 2]


def test_edits_reach_the_later_files_of_a_large_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["qalam_core.package.write"], "SHARD_LIMIT", 1200)
    folder = real_package(tmp_path / "model", "word", tied=False)
    size = read(folder).config.vocab_size
    assert len(list(folder.glob("weights_*.py"))) > 8
    for tensor, row in ((EMBEDDING, size - 1), ("lm_head.weight", size // 2), ("blocks.1.fc2.weight", 7)):
        before = contents(folder)
        change = scale_row(folder, tensor, row, 3)
        after = contents(folder)
        assert {name for name in after if before[name] != after[name]} == {change.file}
        assert len(changed_lines(before[change.file], after[change.file])) == 1
    add_token(folder, "مكتبات")
    assert read(folder).weights["lm_head.weight"].shape == (size + 1, 8)


@pytest.mark.usefixtures("processes")
def test_git_shows_three_edited_rows_as_three_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = export(tmp_path / "repository")
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        done = subprocess.run([*command, *arguments], cwd=folder, check=True, capture_output=True, text=True)
        return done.stdout

    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "exported")
    scale_row(folder, EMBEDDING, "القط", 1.5)
    set_row(folder, "pos_embedding", 3, ROW)
    set_value(folder, "blocks.1.ln2.weight", 0, 0, 0.5)
    assert git("diff", "--numstat").split("\n") == ["3\t3\tweights.py", ""]
    seal(folder, "three rows for the test")
    git("checkout", "-q", ".")
    assert verify(folder) == []


def test_an_edited_row_changes_the_generated_text(tmp_path: Path) -> None:
    folder = export(tmp_path / "model", config=replace(CONFIG, tied=False))
    before = read(folder)
    model = NumpyTransformer(before.config, before.weights)
    features = model._features(np.array([[2, 4]]), model._cache(1, 2), 0)[0, -1]
    row = ", ".join(repr(float(value)) for value in features * 100)
    lines = (folder / "weights.py").read_text(encoding="utf-8").split("\n")
    start = next(number for number, line in enumerate(lines) if '"lm_head.weight"' in line) + 1
    lines[start + 11] = f"        [{row}],"
    (folder / "weights.py").write_bytes("\n".join(lines).encode())
    after = read(folder)
    assert generate(after, "القط", 1, temperature=0) == "القط في"
    assert generate(before, "القط", 1, temperature=0) != "القط في"
    logits = [NumpyTransformer(each.config, each.weights)(np.array([[2, 4]]))[0][0, -1] for each in (before, after)]
    others = np.arange(12) != 11
    assert np.array_equal(logits[0][others], logits[1][others])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: set_row(p, EMBEDDING, 5, [1, 2]), "2 numbers for a row of 8"),
        (lambda p: set_row(p, EMBEDDING, 12, ROW), "has no row 12; rows are 0 to 11"),
        (lambda p: set_row(p, EMBEDDING, "-1", ROW), '"-1" is not a token'),
        (lambda p: set_row(p, EMBEDDING, -1, ROW), "has no row -1"),
        (lambda p: set_row(p, EMBEDDING, "كلب", ROW), '"كلب" is not a token of this model; add it first'),
        (lambda p: set_row(p, "pos_embedding", "القط", ROW), "have no tokens"),
        (lambda p: set_row(p, "embeding.weight", 1, ROW), 'did you mean "embedding.weight"'),
        (lambda p: set_row(p, "lm_head.weight", 1, ROW), "is tied to"),
        (lambda p: set_value(p, EMBEDDING, 5, 8, 1), "has no column 8; columns are 0 to 7"),
        (lambda p: set_value(p, "ln_out.bias", 5, 1, 1), "has no column 1"),
        (lambda p: set_value(p, EMBEDDING, 5, 0, float("nan")), "not finite"),
        (lambda p: scale_row(p, EMBEDDING, 5, 1e300), "not finite"),
        (lambda p: copy_row(p, EMBEDDING, 5, "كلب"), "not a token"),
        (lambda p: add_token(p, "  "), "printable"),
        (lambda p: add_token(p, "a\nb"), "printable"),
        (lambda p: seal(p, "no change"), "nothing to seal"),
        (lambda p: seal(p, "two\nlines"), "one line"),
        (lambda p: seal(p, " "), "one line"),
    ],
)
def test_errors_are_one_line_and_change_nothing(package: Path, call: Any, message: str) -> None:
    before = contents(package)
    with pytest.raises(PackageError, match=message) as caught:
        call(package)
    assert "\n" not in str(caught.value)
    assert contents(package) == before


def test_add_token_refuses_a_tokenizer_json_of_another_vocabulary(package: Path) -> None:
    edit(package / "tokenizer.json", '"القط": 4', '"القطة": 4')
    before = contents(package)
    with pytest.raises(PackageError, match=r"^tokenizer\.json:0: differs from the tokenizer in vocab\.py") as caught:
        add_token(package, "قط")
    assert "\n" not in str(caught.value)
    assert contents(package) == before


def test_add_token_accepts_a_reformatted_tokenizer_json(package: Path) -> None:
    file = package / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")), indent=1), encoding="utf-8")
    add_token(package, "قط")
    assert "قط" in read(package).vocabulary.words


def test_tokens_of_digits_are_quoted() -> None:
    words = vocabulary(words=(*WORDS[:10], "7", "٧"))
    assert find_row(words, EMBEDDING, "7") == 7
    assert find_row(words, EMBEDDING, '"7"') == 10
    assert find_row(words, EMBEDDING, "٧") == 11
    assert find_row(words, EMBEDDING, '"') == 7


def test_a_word_inside_a_text_is_found_without_its_space() -> None:
    words = vocabulary(words=(*WORDS[:9], " قط", " في", "في"))
    assert find_row(words, EMBEDDING, "قط") == find_row(words, EMBEDDING, " قط") == 9
    assert find_row(words, EMBEDDING, "في") == 11
    assert find_row(words, EMBEDDING, " في") == 10


def test_a_full_disk_does_not_change_the_package(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(package)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PackageError, match="cannot be written"):
        scale_row(package, EMBEDDING, 1, 2)
    assert contents(package) == before


@pytest.mark.usefixtures("processes")
def test_editing_executes_nothing_in_the_package(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_it(package, "model.weights")
    assert list(package.glob("__pycache__/weights.*.pyc"))
    modules = set(sys.modules)
    scale_row(package, EMBEDDING, 1, 2)
    assert set(sys.modules) == modules
    assert len(verify(package)) == 1  # the cache of the old weights.py went with it


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_word_is_used_in_texts(tmp_path: Path, tied: bool) -> None:
    folder = real_package(tmp_path / "model", "word", tied=tied)
    old = read(folder)
    size = old.config.vocab_size
    before = contents(folder)
    changes = add_token(folder, "مكتبات", ["الكتاب", "الدفتر"])
    package = read(folder)
    assert [change.tensor for change in changes] == [EMBEDDING] if tied else [EMBEDDING, "lm_head.weight"]
    for change in changes:
        tensor, rows = package.weights[change.tensor], old.weights[change.tensor]
        assert np.array_equal(tensor[:-1], rows)
        index = [old.vocabulary.words.index(word) for word in ("الكتاب", "الدفتر")]
        assert np.array_equal(tensor[-1], rows[index].mean(0, dtype=np.float64).astype(np.float32))
        line = (folder / change.file).read_text(encoding="utf-8").split("\n")[change.line - 1]
        assert line.startswith('        "')
    for encode in encoders(folder):
        assert encode("في مكتبات") == [*encode("في"), size]
    assert package.vocabulary.words == (*old.vocabulary.words, "مكتبات")
    assert ast.literal_eval(f"({(folder / 'config.py').read_text(encoding='utf-8').split('PARAMETERS = ')[1]})") == sum(
        tensor.size for tensor in package.weights.values()
    )
    after = contents(folder)
    assert {name for name in after if before[name] != after[name]} == {
        "config.py", "tokenizer.json", "vocab.py", "weights.py",
    }  # fmt: skip
    for name, lines in (("config.py", 0), ("vocab.py", 1), ("tokenizer.json", 1), ("weights.py", 1 if tied else 2)):
        assert after[name].count(b"\n") - before[name].count(b"\n") == lines
    seal(folder, "a word for libraries")
    assert verify(folder) == []


def test_a_new_word_starts_with_the_row_of_unk(tmp_path: Path) -> None:
    folder = real_package(tmp_path / "model", "word")
    before = read(folder).weights[EMBEDDING][1]
    add_token(folder, "مكتبات")
    assert np.array_equal(read(folder).weights[EMBEDDING][-1], before)


def test_words_that_would_never_occur_are_refused(tmp_path: Path) -> None:
    folder = real_package(tmp_path / "model", "word")
    for token, message in (
        ("الكتاب", "is already a token"),
        ("كتاب جديد", "would never occur"),
        ("ﻛﺘﺎب", "it becomes"),
    ):
        with pytest.raises(PackageError, match=message):
            add_token(folder, token)


@pytest.mark.parametrize("before", ["", "، "])
def test_a_byte_pair_token_is_added_with_its_merge(tmp_path: Path, before: str) -> None:
    folder = real_package(tmp_path / "model", "bpe")
    old = read(folder)
    encode, _ = encoders(folder)
    size = len(old.vocabulary.words)
    word = "قبل"
    assert len(encode(f"{before}{word}")) == len(encode(before)) + 2
    token = f" {word}" if before else word
    pair = encode(f"{before}{word}")[-2:]
    add_token(folder, token)
    for encoder in encoders(folder):
        assert encoder(f"{before}{word}") == [*encode(before), size]
    package = read(folder)
    assert np.allclose(package.weights[EMBEDDING][-1], old.weights[EMBEDDING][pair].mean(0))
    for text in sentences(20):
        ours, theirs = (encoder(text) for encoder in encoders(folder))
        assert ours == theirs
    assert find_row(package.vocabulary, EMBEDDING, word) == size


def test_byte_pair_tokens_without_a_possible_merge_are_refused(tmp_path: Path) -> None:
    folder = real_package(tmp_path / "model", "bpe")
    before = contents(folder)
    for token, message in (
        ("x", "is already a token"), ("zebra", "is 5 tokens"), ("a.", "is split into two pieces"), ("ﻻ", "it becomes"),
    ):  # fmt: skip
        with pytest.raises(PackageError, match=message):
            add_token(folder, token)
    assert contents(folder) == before
    with pytest.raises(PackageError, match='in a text it becomes "z" '):
        find_row(read(folder).vocabulary, EMBEDDING, "zebra")


def test_seals_are_counted_and_listed_in_the_card(package: Path) -> None:
    scale_row(package, EMBEDDING, "القط", 2)
    (package / "config.py").write_bytes((package / "config.py").read_bytes() + b"# small\n")
    assert len(seal(package, "cats matter more")) == 2
    assert verify(package) == []
    read(package, strict=True)
    scale_row(package, EMBEDDING, "القط", 0.5)
    with pytest.raises(PackageError, match="changed since export"):
        read(package, strict=True)
    seal(package, "or do they?")
    assert (package / "MODEL_CARD.md").read_text(encoding="utf-8").split("\n")[2:] == [
        "## Edited since export",
        "",
        "Figures above were measured before these edits.",
        "",
        '1. cats matter more (config.py: changed; embedding.weight: 1 of 12 rows changed: 4 ("القط"))',
        '2. or do they? (embedding.weight: 1 of 12 rows changed: 4 ("القط"))',
        "",
    ]
    manifest = json.loads((package / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["provenance"] == {"edits": "2", "recipe": "0" * 64}


def test_a_sealed_package_equals_an_exported_one(package: Path, tmp_path: Path) -> None:
    values = weights()
    values[EMBEDDING][5] = ROW
    values["ln_out.bias"][3] = 2
    set_row(package, EMBEDDING, 5, ROW)
    set_value(package, "ln_out.bias", 3, 0, 2)
    seal(package, "as if trained so")
    sealed, exported = contents(package), contents(export(tmp_path / "other", weights=values))
    for name in ("weights.py", "knowledge_map.py", "rows.json", "vocab.py", "config.py"):
        assert sealed[name] == exported[name], name
    assert json.loads(sealed["manifest.json"])["tensors"] == json.loads(exported["manifest.json"])["tensors"]
