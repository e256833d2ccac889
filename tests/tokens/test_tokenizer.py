from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qalam_core.arabic import NORMALISATIONS, normalise, normalise_array
from qalam_core.errors import CorpusError, QalamError
from qalam_core.package.runtime.architecture import SPECIALS
from qalam_core.package.vocabulary import tokenizer_json, vocabulary_of
from qalam_core.tokens.shards import flattened
from qalam_core.tokens.tokenizer import Algorithm, ArabicTokenizer
from tests.conftest import examples, sentences


def trained(algorithm: Algorithm, vocab_size: int = 320, profile: str = "standard") -> ArabicTokenizer:
    tokenizer = ArabicTokenizer(vocab_size, algorithm, NORMALISATIONS[profile])
    tokenizer.build_vocab(iter(sentences(200)), min_freq=2)
    return tokenizer


BPE, WORD = trained("bpe"), trained("word", 60)
VOCALISED = trained("bpe", 320, "vocalised")


@pytest.mark.parametrize("tokenizer", [BPE, WORD])
def test_specials_come_first(tokenizer: ArabicTokenizer) -> None:
    assert tokenizer.words[:4] == SPECIALS
    assert [tokenizer.word2idx[special] for special in SPECIALS] == [0, 1, 2, 3]
    assert len(tokenizer.words) == len(tokenizer) == len(tokenizer.word2idx) == len(tokenizer.idx2word)


@pytest.mark.parametrize("algorithm", ["bpe", "word"])
def test_the_same_texts_in_any_order_give_the_same_bytes(algorithm: Algorithm) -> None:
    one, two = ArabicTokenizer(320, algorithm), ArabicTokenizer(320, algorithm)
    texts = sentences(200)
    one.build_vocab(texts)
    two.build_vocab(reversed(texts))
    assert tokenizer_json(one.vocabulary) == tokenizer_json(two.vocabulary)


@pytest.mark.parametrize("tokenizer", [BPE, WORD])
def test_json_round_trip(tokenizer: ArabicTokenizer) -> None:
    text = tokenizer_json(tokenizer.vocabulary)
    again = ArabicTokenizer.from_vocabulary(vocabulary_of(text))
    assert tokenizer_json(again.vocabulary) == text
    assert again.vocabulary == tokenizer.vocabulary
    assert again.words == tokenizer.words
    text = sentences(1, seed=5)[0]
    assert again.encode(text) == tokenizer.encode(text)


@given(st.text(max_size=60))
def test_bpe_loses_nothing_of_normalised_text(text: str) -> None:
    normalised = BPE.normalize(text)
    assert BPE.decode(BPE.encode(text)) == normalised


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=20), max_size=5))
def test_encode_batch_equals_encode(texts: list[str]) -> None:
    assert BPE.encode_batch(texts) == [BPE.encode(text) for text in texts]


def test_vocalised_words_are_not_split() -> None:
    pieces = VOCALISED._tokenizer.pre_tokenizer.pre_tokenize_str("كَتَبَ الطَّالِبُ الدَّرْسَ 12345 ثم،، نام")
    assert len(pieces) == 3 + 2 + 1 + 1 + 1


def test_tokens_are_readable_and_one_to_one() -> None:
    assert " في" in BPE.words or "في" in BPE.words
    assert "\\xd8" in BPE.words  # a byte that is no letter by itself
    assert "\\\\" in BPE.words  # the backslash is doubled, so that the line above cannot be mistaken
    assert len(set(BPE.words)) == len(BPE)
    assert all(left + right in BPE.word2idx or "\\x" in left + right for left, right in BPE.vocabulary.merges)


def test_text_that_looks_like_a_special_token_is_text() -> None:
    assert not set(BPE.encode("<END> <PAD>")) & {0, 1, 2, 3}
    assert set(WORD.encode("<END>")) == {1}


def test_the_word_tokenizer_splits_as_the_original_did() -> None:
    assert WORD.tokenize("يقرأ القط، كتابًا 12!") == ["يقرأ", "القط", "،", "كتابا", "12", "!"]
    assert WORD.encode("يقرأ غريب القط") == [WORD.word2idx["يقرأ"], 1, WORD.word2idx["القط"]]
    assert WORD.decode([2, WORD.word2idx["يقرأ"], WORD.word2idx["القط"], 3]) == "يقرأ القط"
    assert WORD.decode(WORD.encode("يقرأ غريب القط")) == "يقرأ <UNK> القط"
    assert BPE.tokenize("القط") == [BPE.words[i] for i in BPE.encode("القط")]


def test_from_words_keeps_the_order_of_ids() -> None:
    tokenizer = ArabicTokenizer.from_words([*SPECIALS, "قط", "كلب"])
    assert tokenizer.encode("كلب قط فيل") == [5, 4, 1]
    with pytest.raises(QalamError, match="begins with"):
        ArabicTokenizer.from_words(["قط"])


def test_transformers_reads_the_file(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    text = sentences(1, seed=9)[0]
    for tokenizer in (BPE, WORD):
        tokenizer.save(tmp_path / "tokenizer.json")
        theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)


def test_save_and_load(tmp_path: Path) -> None:
    BPE.save(tmp_path / "tokenizer.json")
    other = ArabicTokenizer()
    other.load(tmp_path / "tokenizer.json")
    assert tokenizer_json(other.vocabulary) == tokenizer_json(BPE.vocabulary)
    assert (other.algorithm, len(other)) == ("bpe", len(BPE))


def test_texts_without_frequent_words_are_an_error() -> None:
    with pytest.raises(CorpusError, match="min_freq"):
        ArabicTokenizer(100, "word").build_vocab(["كل كلمة مرة"], min_freq=2)


@pytest.mark.parametrize("text", ["", "{", "{}", '{"model": {"type": "Unigram"}}', "[]"])
def test_a_foreign_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(QalamError, match=r"not a tokenizer\.json"):
        ArabicTokenizer.from_file(path)


# What corpora contain, and what they should not: letters, vowel marks, digits of two scripts, joined emoji, odd spaces,
# line ends, private-use and unassigned characters, and texts that spell a special token.
ODD = st.lists(
    st.one_of(
        st.sampled_from("ابتقطأإآةى ءَُِّْـ٠١٢٣456789abcXYZ.,،؛؟!()«»\n\r\t \u00a0\u3000\u200f\u200d\u0378👩🏽‍🚀<>/"),
        st.sampled_from(["<END>", " القط ", "يقرأ", "\n\n", "  ", "ﷺ", "🇸🇦", "\ufb50", "كَتَبَ", "\u2028"]),
        st.characters(codec="utf-8"),
    ),
    max_size=40,
).map("".join)
TOKENIZERS = {
    (algorithm, profile): trained(algorithm, {"bpe": 320, "word": 60}[algorithm], profile)
    for algorithm in ("bpe", "word") for profile in ("standard", "vocalised", "search")
}  # fmt: skip


@pytest.mark.parametrize(("algorithm", "profile"), TOKENIZERS)
@settings(max_examples=examples(50))
@given(texts=st.lists(ODD | st.sampled_from(sentences(20)), max_size=8), skip=st.integers(0, 2))
def test_normalised_texts_have_the_ids_that_hugging_face_gives(
    algorithm: Algorithm, profile: str, texts: list[str], skip: int
) -> None:
    tokenizer = TOKENIZERS[algorithm, profile]
    normalised = normalise_array(pa.array(texts, pa.large_string()), NORMALISATIONS[profile]).slice(skip)
    ids, lengths = tokenizer.encode_normalised(normalised)
    expected = tokenizer.encode_batch(normalised.to_pylist())
    assert lengths.tolist() == [len(document) for document in expected]
    assert ids.tolist() == [index for document in expected for index in document]


@given(ODD, st.sampled_from(["standard", "vocalised", "search"]))
def test_white_space_in_normalised_text_is_single_spaces_and_line_ends(text: str, profile: str) -> None:
    """So no token crosses the borders at which normalised text is split: before a space or a line end."""
    normalised = normalise(text, NORMALISATIONS[profile])
    assert not re.search(r"[^\S \n]|\s\s|^\s|\s$", normalised)


def test_every_character_is_split_as_hugging_face_splits_it() -> None:
    """Characters of all planes between two words, even if the two libraries disagree on what a letter is."""
    points = [
        *range(0x800),
        *range(0x2010, 0x2040),
        0xFD3E,
        0xFD3F,
        *range(0x800, 0xD800, 31),
        *range(0xE000, 0x110000, 997),
    ]
    texts = normalise_array(
        pa.array([f"قط{chr(p)}4 {chr(p)} {chr(p)}" for p in points], pa.large_string()), NORMALISATIONS["standard"]
    )
    for tokenizer in (BPE, WORD):
        ids, lengths = tokenizer.encode_normalised(texts)
        assert flattened(tokenizer.encode_batch(texts.to_pylist()))[0].tolist() == ids.tolist()
        assert len(lengths) == len(texts)


def test_empty_texts_have_no_ids() -> None:
    for texts in ([], ["", ""]):
        ids, lengths = BPE.encode_normalised(pa.array(texts, pa.large_string()))
        assert (ids.tolist(), lengths.tolist()) == ([], [0] * len(texts))


def test_normalised_text_trains_the_same_tokenizer() -> None:
    one, two = ArabicTokenizer(320, "bpe"), ArabicTokenizer(320, "bpe")
    one.build_vocab(sentences(200))
    two.build_vocab((normalise(text) for text in sentences(200)), normalised=True)
    assert tokenizer_json(one.vocabulary) == tokenizer_json(two.vocabulary)
