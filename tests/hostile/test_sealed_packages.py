"""Packages whose manifest was written again after the attack: digests prove nothing, so everything hashed is judged."""

from __future__ import annotations

import base64
import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qalam_core.errors import PackageError
from qalam_core.files import sha256_file
from qalam_core.package import read, verify
from qalam_core.package.editing.seal import seal
from qalam_core.package.read import git_remark
from qalam_core.package.runtime.architecture import SPECIALS
from qalam_core.package.runtime.rows import MATRIX_TYPES
from qalam_core.package.write import GITATTRIBUTES, replace_card
from tests.small_package import CONFIG, contents, edit, export, golden_package, vocabulary, weights


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return export(tmp_path / "model")


def reseal(package: Path) -> None:
    manifest = json.loads((package / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"] = {name: sha256_file(package / name) for name in manifest["files"]}
    (package / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def refused(package: Path, message: str) -> None:
    with pytest.raises(PackageError, match=message) as caught:
        verify(package)
    assert str(caught.value).isprintable()


def changed(package: Path, name: str, change: Callable[[str], str]) -> None:
    path = package / name
    before = path.read_bytes().decode()
    after = change(before)
    assert after != before
    path.write_bytes(after.encode("utf-8", "surrogatepass"))
    reseal(package)


def swap(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new, 1)


def as_json(change: Callable[[Any], None], **options: Any) -> Callable[[str], str]:
    def changed(text: str) -> str:
        data = json.loads(text)
        change(data)
        return json.dumps(data, ensure_ascii=False, **options)

    return changed


def exchange_ids(data: Any) -> None:
    vocab = data["model"]["vocab"]
    vocab["القط"], vocab["يأكل"] = vocab["يأكل"], vocab["القط"]


TOKENIZERS: dict[str, Callable[[Any], None]] = {
    "other ids": exchange_ids,
    "another word": lambda data: data["model"]["vocab"].update({"القطة": data["model"]["vocab"].pop("القط")}),
    "true for one": lambda data: data["model"]["vocab"].update({"<UNK>": True}),
    "a float": lambda data: data["model"]["vocab"].update({"<UNK>": 1.0}),
    "a rule less": lambda data: data["normalizer"]["normalizers"].pop(2),
    "another split": lambda data: data["pre_tokenizer"].update(behavior="Isolated"),
    "another unknown": lambda data: data["model"].update(unk_token="<PAD>"),
    "a special word": lambda data: data["added_tokens"][0].update(lstrip=True),
    "an added word": lambda data: data["added_tokens"].append({**data["added_tokens"][0], "id": 4, "content": "القط"}),
    "inserted ids": lambda data: data.update(post_processor={"type": "ByteLevel", "add_prefix_space": True,
                                                             "trim_offsets": True, "use_regex": True}),
    "a cut": lambda data: data.update(truncation={"max_length": 1}),
    "something else": lambda data: data.update(x=1),
    "nothing": lambda data: data.clear(),
}  # fmt: skip


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_tokenizer_json_with_another_meaning_is_refused(package: Path, case: str) -> None:
    changed(package, "tokenizer.json", as_json(TOKENIZERS[case]))
    refused(package, r"^tokenizer\.json:0: differs from the tokenizer in vocab\.py")


def test_a_tokenizer_json_of_another_package_is_refused(package: Path) -> None:
    changed(package, "vocab.py", swap('"القط"', '"قط"'))
    refused(package, r"^tokenizer\.json:0: differs")


def test_a_reformatted_tokenizer_json_is_the_same(package: Path) -> None:
    changed(package, "tokenizer.json", as_json(lambda data: None, sort_keys=True))
    assert verify(package) == []


@pytest.mark.parametrize("word", ["\\\\x61", "a", ""])
def test_byte_pair_tokens_with_equal_or_no_bytes_are_refused(package: Path, word: str) -> None:
    words = (*SPECIALS, "a", "b", "ab", "c", "d", "e", "f", "g")
    byte_pairs = vocabulary(algorithm="bpe", words=words, merges=(("a", "b"),))
    folder = export(package.parent / "byte pairs", vocabulary=byte_pairs)
    changed(folder, "vocab.py", swap('"c": 7', f'"{word}": 7'))
    refused(folder, r"^vocab\.py:[0-9]+: (two tokens have the same bytes, or one has none|this word already has id 4)")
    given = (*words[:7], word.replace("\\\\", "\\"), *words[8:])
    with pytest.raises(PackageError, match=r"^vocabulary: "):
        export(package.parent / "other", vocabulary=byte_pairs._replace(words=given))


def test_edited_words_are_reported_until_they_are_sealed(package: Path) -> None:
    edit(package / "vocab.py", '"القط"', '"قط"')
    assert verify(package) == ["vocab.py: changed since export"]
    assert '"قط"' in read(package).tokenizer_json  # what an evaluation of the package uses
    seal(package, "without the article")
    assert '"قط"' in (package / "tokenizer.json").read_text(encoding="utf-8")
    assert verify(package) == []
    edit(package / "tokenizer.json", '"قط"', '"القط"')
    refused(package, r"^tokenizer\.json:0: differs")  # it is no copy of anything, also while verify would report it


@pytest.mark.parametrize("change", [
    swap("*.py text eol=lf", "*.py text eol=lf -diff"), swap("*.py text eol=lf", "*.py text eol=lf merge=union"),
    swap("*.json", "*.jso"), lambda text: "", lambda text: text + "* filter=x\n",
    lambda text: text + "\n", lambda text: f"# a comment\n{text}",
])  # fmt: skip
def test_other_git_attributes_are_refused(package: Path, change: Callable[[str], str]) -> None:
    changed(package, ".gitattributes", change)
    refused(package, r"^\.gitattributes:0: ")


def test_the_git_attributes_of_earlier_exports_are_accepted(tmp_path: Path) -> None:
    package = export(tmp_path / "model")
    assert (package / ".gitattributes").read_bytes() == GITATTRIBUTES[0]
    for content in GITATTRIBUTES:
        (package / ".gitattributes").write_bytes(content)
        reseal(package)
        assert verify(package) == []
    read(golden_package(tmp_path / "golden"))


@pytest.mark.parametrize(
    "text", ["\x1b[31m", "\r", "\x00", "\x07", "\x7f", "\x85", "\x9b", "\u2028", "\u202e", "\u2067"]
)
def test_control_characters_in_a_card_or_provenance_are_refused(package: Path, text: str) -> None:
    before = contents(package)
    with pytest.raises(PackageError, match=r"^MODEL_CARD\.md:0: control character U\+"):
        replace_card(package, f"# {text}")
    for wrong, place in (({"card": f"# {text}"}, "MODEL_CARD.md"), ({"provenance": {"x": text}}, "manifest.json"),
                         ({"provenance": {text: ""}}, "manifest.json")):  # fmt: skip
        with pytest.raises(PackageError, match=f"^{re.escape(place)}:0: "):
            export(package.parent / "other", **wrong)
    assert contents(package) == before
    changed(package, "MODEL_CARD.md", lambda card: card + text + "\n")
    refused(package, r"^MODEL_CARD\.md:0: control character U\+")


def test_a_card_of_any_script_is_accepted(package: Path) -> None:
    replace_card(package, "# نموذج\u200f \u200cمی‌خواهم\n\n\t| كلمة | 1 |\n😀 \u00a0\u00ad")
    assert verify(package) == []
    with pytest.raises(PackageError, match="surrogate"):
        replace_card(package, "\ud800")


@pytest.mark.parametrize("fact", [
    '"x": (1, 2, 3),', '"x": (1, 2, 3, 4, 5),', '"x": (1),', '"x": (),', '"x": (007, 1, 1, 1),',
    '"x": (1e999, 1, 1, 1),',
    '"x": (nan, 1, 1, 1),', '"\\x41": (1, 1, 1, 1),', '"\\ud800": (1, 1, 1, 1),', '"ln_out.bias": (1, 1, 1, 1),',
    '"x": (1, 1, 1, 1)', "'x': (1, 1, 1, 1),", '"x": (1_0, 1, 1, 1),', '"x": (1j, 1, 1, 1),', '"x": (0x1, 1, 1, 1),',
    '"x": (("y", 1),),',
])  # fmt: skip
def test_other_statistics_are_refused(package: Path, fact: str) -> None:
    changed(package, "knowledge_map.py", swap("\n}\n", f"\n{fact}\n}}\n"))
    refused(package, r"^knowledge_map\.py:[0-9]+: ")


@pytest.mark.parametrize("fact", [
    '"x": (1, 2, 3, 4),', '"x": (("y", 1)),', '"x": (("\\x41", 1),),', '"x": (("\\ud800", 1),),', '"x": (("y", 01),),',
    '"x": (("y", 1), ("z", 2)),', '"x": (("y", 1),("z", 2),),', '"x": (("y",),),', '"x": (("y" "z", 1),),',
    '"x": (("y", 1e999),),', '"x": ((y, 1),),', '"x": (("y", 1),), "z": (),',
])  # fmt: skip
def test_other_neighbours_are_refused(package: Path, fact: str) -> None:
    changed(package, "knowledge_map.py", swap("NEIGHBOURS = {\n", f"NEIGHBOURS = {{\n{fact}\n"))
    refused(package, r"^knowledge_map\.py:[0-9]+: ")


KNOWLEDGE: dict[str, Callable[[str], str]] = {
    "another mean": lambda text: re.sub(r'(?m)^(    "ln_out\.bias": )\([^,]+', r"\1(0.1", text),
    "another tensor": swap("ln_out.bias", "ln_out.bia"),
    "a tensor less": lambda text: re.sub('(?m)^    "ln_out.bias".*\n', "", text),
    "nothing": lambda text: re.sub("(?m)^    .*\n", "", text),
    "another word": swap("يأكل", "قال"),
    "a word less": lambda text: re.sub('(?m)^    "يأكل".*\n', "", text),
    "another neighbour": swap('(("', '(("قال'),
    "a word as its own neighbour": lambda text: re.sub(r'(?m)^(    ("[^"]+"): \(\()"[^"]+"', r"\1\2", text, count=1),
    "another cosine": lambda text: re.sub(r'(\(\("[^"]+", )[^)]+', r"\g<1>0.99", text, count=1),
    "a neighbour less": lambda text: re.sub(r'\(\("[^"]+", [^)]+\), ', "(", text, count=1),
}


@pytest.mark.parametrize("case", KNOWLEDGE)
def test_facts_that_are_not_those_of_the_weights_are_refused(package: Path, case: str) -> None:
    changed(package, "knowledge_map.py", KNOWLEDGE[case])
    refused(package, r"^knowledge_map\.py:0: not the facts of the exported weights and words")


COMMENTS: dict[str, Callable[[str], str]] = {
    "another mean": swap("mean=", "mean=1"),
    "no number": swap("mean=", "mean=x"),
    "another word": swap('"يأكل"', '"قال "'),
    "words of other rows": lambda text: re.sub("rows 0 to 11", "rows 1 to 11", text, count=1),
}


@pytest.mark.parametrize("case", COMMENTS)
def test_comments_as_exported_that_say_something_else_are_refused(tmp_path: Path, case: str) -> None:
    package = export(tmp_path / "model", config=replace(CONFIG, dim=32))  # rows with room for words
    changed(package, "weights.py", COMMENTS[case])
    refused(package, r"^weights\.py:0: a comment as exported says other figures or words than are there")


def test_facts_and_comments_of_what_was_edited_are_as_exported_until_it_is_sealed(package: Path) -> None:
    edit(package / "weights.py", "mean=", "mean=1")
    edit(package / "knowledge_map.py", "يأكل", "قال")
    assert verify(package) == [
        "knowledge_map.py: changed since export", "weights.py: the text changed, every value is as exported",
    ]  # fmt: skip
    seal(package, "nothing of the model")
    assert verify(package) == []
    again = contents(export(package.parent / "again"))
    for name in ("knowledge_map.py", "weights.py"):
        assert contents(package)[name] == again[name]


@given(st.sampled_from([*MATRIX_TYPES]), st.integers(0, 2**32 - 1), st.sampled_from([1e-37, 1e-9, 1.0, 1e30]))
@settings(max_examples=40)
def test_facts_hold_of_any_values(dtype: str, seed: int, scale: float) -> None:
    random, tensors = np.random.default_rng(seed), weights(seed=seed)
    for values in tensors.values():
        values *= np.float32(scale) if dtype != "f16" else np.float32(min(scale, 1))
        values[random.random(values.shape) < random.random()] = 0  # also whole rows
    with tempfile.TemporaryDirectory() as name:
        assert verify(export(Path(name, "model"), weights=tensors, dtype=dtype)) == []


@pytest.mark.parametrize("stated", MATRIX_TYPES)
@pytest.mark.parametrize("stored", MATRIX_TYPES)
def test_the_storage_type_of_the_manifest_is_that_of_the_matrices(tmp_path: Path, stored: str, stated: str) -> None:
    package = export(tmp_path / "model", dtype=stored)
    edit(package / "manifest.json", f'"dtype": "{stored}"', f'"dtype": "{stated}"')
    if stored == stated:
        assert verify(package) == []
    else:
        refused(
            package, rf"^weights\.py:6: \"embedding\.weight\" is stored as {stored}, but manifest\.json says {stated};"
        )


def test_one_matrix_of_another_storage_type_is_refused(package: Path) -> None:
    other = contents(export(package.parent / "other", dtype="bf16", weights=weights(scale=0)))["weights.py"].decode()
    begin, end = (other.index(f'    "{name}"') for name in ("pos_embedding", "blocks.0.ln1.weight"))
    changed(
        package, "weights.py", lambda text: re.sub(r'(?s)    "pos_embedding".*?(?=    "blocks)', other[begin:end], text)
    )
    refused(package, r"^weights\.py:[0-9]+: \"pos_embedding\" is stored as bf16, but manifest\.json says f32;")


def checksums(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Any], None]:
    def changed(data: Any) -> None:
        rows = np.frombuffer(base64.b64decode(data["ln_out.bias"]), "<u4").copy()
        data["ln_out.bias"] = base64.b64encode(change(rows).tobytes()).decode()

    return changed


ROWS: dict[str, Callable[[Any], None]] = {
    "other checksums": checksums(lambda rows: rows ^ 1),
    "a row less": checksums(lambda rows: rows[1:]),
    "a row more": checksums(lambda rows: np.append(rows, rows[:1])),
    "half a row": lambda data: data.update({"ln_out.bias": data["ln_out.bias"][:4]}),
    "another tensor": lambda data: data.update(x=""),
    "no tensor": lambda data: data.pop("ln_out.bias"),
    "no text": lambda data: data.update({"ln_out.bias": None}),
    "another alphabet": lambda data: data.update({"ln_out.bias": "-" + data["ln_out.bias"][1:]}),
    "surplus bits": lambda data: data.update({"ln_out.bias": data["ln_out.bias"][:-2] + "_="}),
    "white space": lambda data: data.update({"ln_out.bias": data["ln_out.bias"] + "\n"}),
}


@pytest.mark.parametrize("case", ROWS)
def test_other_checksums_of_rows_are_refused(package: Path, case: str) -> None:
    changed(package, "rows.json", as_json(ROWS[case]))
    refused(package, r"^rows\.json:0: ")


@pytest.mark.parametrize("name", ["rows.json", "tokenizer.json", "manifest.json"])
@pytest.mark.parametrize("text", [r'"\ud800"', r'"\udc00\ud800"', r'{"\udfff": "x"}', '"\ud800"'])
def test_half_of_a_surrogate_pair_is_refused_in_every_json_file(package: Path, name: str, text: str) -> None:
    path = package / name
    path.write_bytes(
        path.read_text(encoding="utf-8").replace("{", f'{{"x": {text},', 1).encode("utf-8", "surrogatepass")
    )
    if name != "manifest.json":
        reseal(package)
    refused(package, rf"^{re.escape(name)}:0: .*(surrogate|not valid JSON|not UTF-8)")


MANIFESTS: dict[str, Callable[[Any], None]] = {
    "format true": lambda data: data.update(format=True),
    "format 1.0": lambda data: data.update(format=1.0),
    "format text": lambda data: data.update(format="1"),
    "format list": lambda data: data.update(format=[1] * 1000),
    "dtype true": lambda data: data.update(dtype=True),
    "dtype list": lambda data: data.update(dtype=["f32"]),
    "dtype object": lambda data: data.update(dtype={"f32": 1}),
    "dtype null": lambda data: data.update(dtype=None),
    "a digest of a name with controls": lambda data: data["tensors"].update({"\x1b[2J\n": "x"}),
    "a file with controls": lambda data: data["files"].update({"\x1b[2J\n\u202e": "0" * 64}),
    "provenance with controls": lambda data: data["provenance"].update(x="\x1b[2J"),
    "provenance of two lines": lambda data: data["provenance"].update(x="a\nb"),
    "a digest in capitals": lambda data: data["files"].update({"vocab.py": "A" * 64}),
    "a number for text": lambda data: data["provenance"].update(x=1),
    "the numbers of files with zeros": lambda data: data["files"].update({"weights_0001.py": "0" * 64}),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_other_manifests_are_refused(package: Path, case: str) -> None:
    path = package / "manifest.json"
    path.write_text(as_json(MANIFESTS[case])(path.read_text(encoding="utf-8")), encoding="utf-8")
    refused(package, r"^manifest\.json:0: .{1,200}$")


def test_a_git_folder_is_warned_of(package: Path) -> None:
    assert git_remark(package) == ""
    (package / ".git").mkdir()
    assert verify(package) == []
    assert "not checked" in git_remark(package)
    (package / ".git").rmdir()
    (package / ".git").write_text("gitdir: /elsewhere\n")  # what a work tree and a submodule have
    assert "not checked" in git_remark(package)
