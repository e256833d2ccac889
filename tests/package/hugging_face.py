"""Tokenizers of the Hugging Face library with our configuration, trained on a few texts."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from qalam_core.arabic import Rules
from qalam_core.package.runtime.architecture import SPECIALS
from qalam_core.package.runtime.tokenizer import is_first

BPE_SPLIT = r" ?[\p{L}\p{M}]+| ?\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"
WORD_SPLIT = r"[\p{L}\p{M}]+|\p{N}+|[^\s\p{L}\p{M}\p{N}]"
CORPUS = [
    "القط يأكل السمك في البيت الكبير", "بِسْمِ اللَّهِ الرَّحْمَنِ الرَّحِيمِ", "سنة 1445 هـ و2024 م، 12345678",
    "قال: «نعم»، ثم مضى... hello world 😀🇸🇦 👩‍👩‍👧", "كَتَبَ كِتَابًا\nثُمَّ   قَرَأَهُ", "القط والقط والقطط يأكل ويأكل",
]  # fmt: skip


def hugging_face(algorithm: str, rules: Rules, size: int = 400) -> Tokenizer:
    first, others = (
        [normalizers.Replace(Regex(pattern), by) for pattern, by in rules if is_first(pattern) == value]
        for value in (True, False)
    )
    nfkc = normalizers.NFKC()
    normalizer = normalizers.Sequence([*first, nfkc, *others, nfkc, normalizers.Strip()])
    options: dict[str, Any] = {"vocab_size": size, "special_tokens": list(SPECIALS), "show_progress": False}
    trainer: trainers.Trainer
    if algorithm == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(BPE_SPLIT), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(**options, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    else:
        tokenizer = Tokenizer(models.WordLevel(unk_token="<UNK>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD_SPLIT), "removed", invert=True)
        trainer = trainers.WordLevelTrainer(**options)
    tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(CORPUS, trainer)
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] != "<UNK>"]  # decoding shows it
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.encode_special_tokens = True
    return tokenizer
