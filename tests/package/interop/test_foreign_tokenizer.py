"""Import of tokenizer.json files of GPT-2's, Llama 3's and Qwen's kind."""

from __future__ import annotations

import json
import os
import re
import time
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as LibraryTokenizer

from qalam_core.errors import PackageError
from qalam_core.package import ModelConfig, generate, read, verify
from qalam_core.package.editing.diff import diff
from qalam_core.package.editing.merge import merge, write_merged
from qalam_core.package.editing.rows import add_token, scale_row
from qalam_core.package.editing.seal import seal
from qalam_core.package.interop import foreign_tokenizer
from qalam_core.package.interop.foreign_tokenizer import foreign_vocabulary, probes, roles_of
from qalam_core.package.interop.transformers_folder import export_transformers, import_transformers
from qalam_core.package.runtime import tokenizer as runtime
from qalam_core.package.runtime.tokenizer import SPLITS, Specials, Tokenizer, Vocabulary
from qalam_core.package.vocabulary import BPE_SPLITS, says_the_same, tokenizer_json
from qalam_core.pipeline.propose import candidate
from qalam_core.runs import Runs
from qalam_core.store import Store
from tests.conftest import examples, sentences
from tests.small_package import export

KINDS = ("gpt2", "llama3", "qwen2")
NAMES = {"gpt2": ["<|endoftext|>"], "llama3": ["<|begin|>", "<|end|>", "<|kept|>"], "qwen2": ["<|text|>", "<think>"]}
ROLES: dict[str, dict[str, str | int]] = {
    "gpt2": {"START": "<|endoftext|>", "END": "<|endoftext|>"},
    "llama3": {"START": "<|begin|>", "END": "<|end|>"},
    "qwen2": {"START": "<|text|>", "END": "<|text|>", "PAD": "<|text|>"},
}


ALL_PROBES = foreign_tokenizer.PROBES


@pytest.fixture(autouse=True)
def _probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer of them in `make check`."""
    monkeypatch.setattr(foreign_tokenizer, "PROBES", examples(ALL_PROBES))


@cache
def foreign(kind: str) -> str:
    """A small tokenizer.json as its trainer saves it, with its special tokens behind the others."""
    tokenizer = LibraryTokenizer(models.BPE(ignore_merges=kind == "llama3"))
    if kind == "gpt2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(BPE_SPLITS[kind]), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    texts = [
        *sentences(60),
        *["it's WE'LL you're 123 456,78901 code = {x: 1};\n\n  next;\r\n كَتَبَ الوَلَدُ دَرْسًا Привет мир 你好 世界"] * 9,
    ]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in NAMES[kind]])
    return tokenizer.to_str()


@cache
def imported(kind: str) -> Vocabulary:
    return foreign_vocabulary(foreign(kind), ROLES[kind])


def library(text: str) -> LibraryTokenizer:
    tokenizer = LibraryTokenizer.from_str(text)
    tokenizer.encode_special_tokens = True
    return tokenizer


def loader_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(folder.parent))
    return __import__(f"{folder.name}.loader", fromlist=["load_model"])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=examples(300))
@given(text=st.text(max_size=60) | st.text(alphabet=" \n\r\t'sSlLرَ١1.\u017f", max_size=30))
def test_a_package_gives_the_same_ids(kind: str, text: str) -> None:
    tokenizer = Tokenizer(imported(kind))
    theirs = library(foreign(kind)).encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text) == theirs
    assert tokenizer.decode(theirs) == library(foreign(kind)).decode(theirs)


@pytest.mark.parametrize("split", SPLITS)
def test_every_character_is_split_as_by_the_library(split: str) -> None:
    """But for letters that only one of both versions of Unicode knows."""
    theirs = pre_tokenizers.Split(Regex(BPE_SPLITS[split]), "isolated")
    pattern = re.compile(runtime._PIECES[split])
    differing = []
    every = (*range(0xD800), *range(0xE000, 0x20000))
    for code in every[:: 1 if examples(100) == 100 else 8]:  # all in `make test`
        text = f"x{chr(code)}y '{chr(code)} 1{chr(code)}{chr(code)}.\n{chr(code)}"
        expected = [piece for piece, _ in theirs.pre_tokenize_str(text)]
        found = [text[m.start() : m.end()] for m in pattern.finditer(text.translate(runtime._CLASSES))]
        if found != expected and unicodedata.category(chr(code)) != "Cn":
            differing.append(f"{code:04X}")
    assert not differing


@pytest.mark.parametrize("split", SPLITS)
def test_splitting_takes_linear_time(split: str) -> None:
    pattern = re.compile(runtime._PIECES[split])
    begun = time.perf_counter()
    for part in (" ", "\t \n", " \t", "'", "' ", "a", ".", "\n", "0", "'l", " .\n", "^"):
        text = part * (200_000 // len(part))
        assert sum(len(match[0]) for match in pattern.finditer(text)) == len(text)
    assert time.perf_counter() - begun < 3  # a quadratic pattern would take minutes


def test_every_split_matches_all_of_a_text() -> None:
    for split in SPLITS:
        assert (
            Tokenizer(imported("gpt2")._replace(split=split)).decode(
                Tokenizer(imported("gpt2")._replace(split=split)).encode(" a'S\r\n\n  ١٢٣٤ ☺ َ")
            )
            == " a'S\r\n\n  ١٢٣٤ ☺ َ"
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_carries_it(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = imported(kind)
    config = ModelConfig(len(vocabulary.words), 8, 2, 1, 32)
    folder = export(tmp_path / f"carries_{kind}", config=config, vocabulary=vocabulary, provenance={})
    found = read(folder, strict=True)
    assert found.vocabulary == vocabulary
    assert not verify(folder)
    assert says_the_same(found.tokenizer_json, vocabulary)
    assert LibraryTokenizer.from_str(found.tokenizer_json).to_str(pretty=True) + "\n" == found.tokenizer_json
    text = "it's ٣٤ كَتَبَ <|endoftext|> <think>\n"
    ids = library(found.tokenizer_json).encode(text, add_special_tokens=False).ids
    module = loader_of(folder, monkeypatch)
    own = module.load_tokenizer()
    assert own.encode(text) == ids  # the name of a special token in a text is text
    assert own.decode(ids) == (unicodedata.normalize("NFC", text) if kind == "qwen2" else text)
    assert own.decode([*vocabulary.specials.ids(), *ids[:3]]) == own.decode(ids[:3])
    for backend in ("numpy", "torch"):
        assert module.load_model(backend)[0].end_id == vocabulary.specials.end


@pytest.mark.parametrize("kind", KINDS)
def test_generation_begins_and_ends_with_its_tokens(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row of the token that ends a text is the only one with weight, so that each text ends at once."""
    vocabulary = imported(kind)
    config = ModelConfig(len(vocabulary.words), 8, 2, 1, 32, tied=False)
    weights = {name: np.zeros(shape, np.float32) for name, shape in config.tensor_shapes().items()}
    weights["ln_out.bias"][:] = 1
    weights["lm_head.weight"][vocabulary.specials.end] = 1
    folder = export(tmp_path / f"ends_{kind}", config=config, vocabulary=vocabulary, weights=weights, provenance={})
    assert generate(read(folder), "كتب", 8, 0) == "كتب"
    model, _, _ = loader_of(folder, monkeypatch).load_model("torch")
    ids = torch.tensor([[vocabulary.specials.start, 50]])
    assert model.generate(ids, 8, 0).tolist() == [[vocabulary.specials.start, 50, vocabulary.specials.end]]


LLAMA: dict[str, Any] = {
    "block": "llama", "num_kv_heads": 2, "head_dim": 6, "hidden_dim": 24, "rope_base": 500.0, "norm_epsilon": 1e-5,
}  # fmt: skip


def checkpoint(folder: Path, kind: str, **changes: Any) -> Path:
    """A checkpoint of random weights with a foreign tokenizer, as transformers saves one."""
    import transformers

    vocabulary = imported(kind)
    shape: dict[str, Any] = {"gpt2": {}, "llama3": {**LLAMA, "qk_norm": False}, "qwen2": {**LLAMA, "qk_norm": True}}[
        kind
    ]
    config = ModelConfig(len(vocabulary.words), 16, 4, 2, 40, **shape, **changes)
    package = export(folder.with_name("made"), config=config, vocabulary=vocabulary, provenance={})
    export_transformers(package, folder)
    names = {"START": "bos_token", "END": "eos_token", "PAD": "pad_token"}
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=LibraryTokenizer.from_str(foreign(kind)),
        **{names[role]: token for role, token in ROLES[kind].items()},
    )
    made.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_comes_back_with_its_ids(kind: str, tmp_path: Path) -> None:
    import transformers

    source = checkpoint(tmp_path / "source", kind)
    assert import_transformers(source, tmp_path / "package") == []
    package = read(tmp_path / "package", strict=True)
    assert package.vocabulary == imported(kind)
    assert {"imported tokenizer.json", "imported tokenizer_config.json"} <= package.manifest["provenance"].keys()
    export_transformers(tmp_path / "package", tmp_path / "back")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    ids = words("كتب it's", return_tensors="pt")["input_ids"]
    specials = package.vocabulary.specials
    assert ids[0].tolist() == [specials.start, *Tokenizer(package.vocabulary).encode("كتب it's")]
    with torch.no_grad():
        text = words.decode(model.generate(ids, max_new_tokens=12, do_sample=False)[0], skip_special_tokens=True)
    assert text == generate(package, "كتب it's", 12, 0)
    import_transformers(tmp_path / "back", tmp_path / "again")
    assert read(tmp_path / "again").vocabulary == package.vocabulary


def test_roles_are_those_of_the_tokenizers_settings_then_of_the_models() -> None:
    assert roles_of({"bos_token": "<s>", "eos_token": {"content": "</s>"}}, {"bos_token_id": 1}) == {
        "START": "<s>", "END": "</s>",
    }  # fmt: skip
    assert roles_of({"bos_token": None}, {"eos_token_id": [7, 8], "pad_token_id": 0}) == {
        "START": 7,
        "END": 7,
        "PAD": 0,
    }
    with pytest.raises(PackageError, match="no eos_token_id"):
        roles_of({}, {"bos_token_id": 1})


def changed(kind: str, change: Callable[[Any], None]) -> str:
    data = json.loads(foreign(kind))
    change(data)
    return json.dumps(data)


REFUSED: dict[str, Callable[[Any], object]] = {
    "model is 'WordPiece'": lambda data: data["model"].update(type="WordPiece"),
    "dropout": lambda data: data["model"].update(dropout=0.1),
    "end_of_word_suffix": lambda data: data["model"].update(end_of_word_suffix="</w>"),
    "continuing_subword_prefix": lambda data: data["model"].update(continuing_subword_prefix="##"),
    "decoder is 'WordPiece'": lambda data: data.update(decoder={"type": "WordPiece"}),
    "decoder is None": lambda data: data.update(decoder=None),
    "its normalizer is": lambda data: data.update(normalizer={"type": "Lowercase"}),
    "its normalizer": lambda data: data.update(normalizer={"type": "Sequence", "normalizers": [{"type": "NFKC"}]}),
    "add_prefix_space": lambda data: data["pre_tokenizer"].update(add_prefix_space=True),
    "does not end with ByteLevel": lambda data: data.update(pre_tokenizer=None),
    "pre_tokenizer is none of al-qalam, gpt2": lambda data: data["pre_tokenizer"].update(use_regex=False),
    "individual_digits": lambda data: data.update(
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, data["pre_tokenizer"]],
        }
    ),
    "would be found in texts": lambda data: data["added_tokens"].append(
        {**data["added_tokens"][0], "id": len(data["model"]["vocab"]) + 1, "content": "  ", "special": False}
    ),
    "none may be missing": lambda data: data["added_tokens"][0].update(id=10**6),
    "two tokens have the id": lambda data: data["model"]["vocab"].update({"ab": 5}),
    "two tokens have the id True": lambda data: data["model"]["vocab"].update({"ab": True}),
    "not in the alphabet of bytes": lambda data: data["model"]["vocab"].update({"☺": len(data["model"]["vocab"]) + 1}),
    "a byte has no token": lambda data: data["model"]["vocab"].update(
        {"zz": data["model"]["vocab"].pop("Ā")}
    ),
    "merge 0 has a token": lambda data: data["model"]["merges"].insert(0, ["z", "q"]),
    "which has the role START, is not": lambda data: data["added_tokens"][0].update(content="<other>"),
    "not of the usual form": lambda data: data.pop("model"),
    "not complete": lambda data: data["model"].update(merges=3),
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_others_are_refused_by_name(reason: str) -> None:
    with pytest.raises(PackageError, match=reason) as raised:
        foreign_vocabulary(changed("gpt2", REFUSED[reason]), ROLES["gpt2"])  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_a_special_token_must_not_be_a_word_of_texts() -> None:
    def change(data: Any) -> None:
        data["model"]["vocab"]["word"] = len(data["model"]["vocab"]) + len(NAMES["llama3"])

    assert foreign_vocabulary(changed("llama3", change), ROLES["llama3"]).words[-1] == "word"
    with pytest.raises(PackageError, match="'word' is also a word of texts"):
        foreign_vocabulary(changed("llama3", change), {"START": "<|begin|>", "END": "word"})


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_that_splits_otherwise_is_found_by_the_probe(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each other split in the place of its own, as if it had been written wrongly."""
    for other in SPLITS:
        if other != kind and (kind, other) != ("qwen2", "llama3"):  # where no merge joins digits, these are the same
            monkeypatch.setitem(runtime._PIECES, kind, runtime._PIECES[other])
            with pytest.raises(PackageError, match="a package would give other ids"):
                foreign_vocabulary(foreign(kind), ROLES[kind])
            monkeypatch.undo()


@pytest.mark.parametrize("kind", KINDS)
def test_other_settings_are_found_by_the_probe(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = foreign_tokenizer._parsed
    wrong: list[dict[str, Any]] = [{"form": "NFKC"}, {"form": "none" if kind == "qwen2" else "NFC"}]
    for change in wrong:
        monkeypatch.setattr(foreign_tokenizer, "_parsed", lambda *given, by=change: parsed(*given)._replace(**by))
        with pytest.raises(PackageError, match="a package would give other ids"):
            foreign_vocabulary(foreign(kind), ROLES[kind])


def test_the_probe_is_ten_scripts_and_always_the_same() -> None:
    words = Tokenizer(imported("gpt2")).idx2word
    texts = list(probes(words))
    assert len(texts) == foreign_tokenizer.PROBES
    assert ALL_PROBES == 10_000
    assert texts == list(probes(words))
    written = {unicodedata.name(char, "").split()[0] for text in texts for char in text if char.isalpha()}
    scripts = {"ARABIC", "LATIN", "CYRILLIC", "GREEK", "HEBREW", "DEVANAGARI", "CJK", "HIRAGANA", "HANGUL", "THAI"}
    assert scripts <= written


@pytest.fixture(name="package")
def _package(tmp_path: Path) -> Path:
    vocabulary = imported("llama3")
    config = ModelConfig(len(vocabulary.words), 8, 2, 1, 32)
    return export(tmp_path / "llama3", config=config, vocabulary=vocabulary, provenance={})


def test_it_is_edited_and_merged_like_any_other(package: Path, tmp_path: Path) -> None:
    import shutil

    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        shutil.copytree(package, folder)
    add_token(ours, "كتباب" if "كتباب" not in imported("llama3").words else "كتبابا")
    scale_row(theirs, "embedding.weight", 50, 2.0)
    for folder in (ours, theirs):
        seal(folder, "edited")
    three = read(package), read(ours), read(theirs)
    write_merged(tmp_path / "merged", merge(*three), *three)
    found = read(tmp_path / "merged")
    assert found.vocabulary.specials == imported("llama3").specials
    assert len(found.vocabulary.words) == len(imported("llama3").words) + 1
    assert Tokenizer(found.vocabulary).encode("كتب") == Tokenizer(imported("llama3")).encode("كتب")
    changed = diff(read(package), found)
    assert changed.tokenizer == ("merges",)


def test_it_cannot_be_proposed(package: Path, tmp_path: Path) -> None:
    """Which it says before anything is built."""
    with pytest.raises(PackageError, match="its tokenizer is of the kind llama3"):
        candidate(Runs(Store(tmp_path / "store")), package, "why", "me")


def vocab_with(package: Path, before: str, after: str) -> Path:
    text = (package / "vocab.py").read_text(encoding="utf-8")
    assert before in text
    (package / "vocab.py").write_text(text.replace(before, after, 1), encoding="utf-8")
    return package


@pytest.mark.parametrize(("before", "after", "reason"), [
    ('SPLIT = "llama3"', 'SPLIT = "cl100k"', "expected SPLIT = "),
    ('UNICODE = "none"\n', "", "expected UNICODE = "),
    ("IGNORE_MERGES = True", "IGNORE_MERGES = 1", "expected IGNORE_MERGES = True or False"),
    ('SPLIT = "llama3"\n', "", 'expected "NORMALISE'),
    ("NORMALISE = (\n", 'NORMALISE = (\n    ("a", "b"),\n', "needs UNICODE NFKC"),
    ('"<|begin|>": "START"', '"<|begin|>": "BEGIN"', "roles are PAD, UNK, START, END"),
    ('"<|begin|>": "START"', '"<|begin|>": "START END"', "each belongs to one token"),
    ('"<|begin|>": "START"', '"<|begun|>": "START"', "not in WORD2IDX"),
    ('"<|begin|>": "START"', '"<|end|>": "START"', "there twice"),
    ('"<|begin|>": "START"', '"<|begin|>": ""', "no special token has the role START"),
    ('"<|begin|>": "START"', '"<|begin|>": 5', "not a special token"),
    ("SPECIALS = {", "SPECIALS = dict({", "expected "),
])  # fmt: skip
def test_hostile_settings_are_refused(package: Path, before: str, after: str, reason: str) -> None:
    with pytest.raises(PackageError, match=reason):
        read(vocab_with(package, before, after))


def test_a_vocabulary_of_this_project_is_written_as_before() -> None:
    assert Specials().ids() == [0, 1, 2, 3]
    assert not Vocabulary("bpe", ("<PAD>",), (), ()).is_foreign
    assert imported("gpt2").is_foreign
    assert "ignore_merges" in tokenizer_json(imported("gpt2"))
