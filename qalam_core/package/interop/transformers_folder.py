"""Imports and exports checkpoints of Hugging Face transformers, losslessly and without executing their code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from qalam_core.errors import PackageError
from qalam_core.package.interop import common
from qalam_core.package.interop.foreign_tokenizer import foreign_vocabulary, roles_of
from qalam_core.package.interop.layouts import layout_in, layout_of
from qalam_core.package.read import read
from qalam_core.package.runtime.tokenizer import Vocabulary
from qalam_core.package.vocabulary import generating_json, vocabulary_of
from qalam_core.package.write import write

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_SHARD = re.compile(r"model-([0-9]{5})-of-([0-9]{5})\.safetensors")


def import_transformers(
    source: Path, out: Path, *, vocabulary: Vocabulary | None = None, dtype: str = "f32"
) -> list[str]:
    """Write the checkpoint of GPT-2, Llama or Qwen3 in the folder `source` as a package into `out`; -> remarks.

    Words are `vocabulary`, or by default those of tokenizer.json: this project's, or a byte-level BPE of a kind that
    packages have, whose ids are compared (foreign_tokenizer.py). Rows of the embedding beyond the words are dropped,
    with a remark.
    """
    source = common.source_folder(source, "a checkpoint")
    common.free_folder(out)
    theirs = common.json_object(source / "config.json")
    layout = layout_in(theirs)
    config = layout.config_of(theirs)
    files = _weight_files(source)
    read_too = []
    if vocabulary is None:
        if not (source / "tokenizer.json").is_file():
            raise PackageError(f"{source}: no tokenizer.json; name a package to take the words from")
        vocabulary = _vocabulary(source, theirs)
        read_too = [source / name for name in _TOKENIZER_FILES if (source / name).is_file()]
    weights = layout.from_theirs(common.read_tensors(files, lambda name: not layout.buffers.fullmatch(name)))
    if config.tied:
        weights = common.without_tied_head(weights, files[-1].name)
    config, weights, remarks = common.without_padding(config, weights, len(vocabulary.words), "config.json")
    sources = common.provenance([source / "config.json", *read_too, *files])
    card = common.card(f"It was imported from a {layout.architecture} checkpoint of transformers.", sources)
    write(
        out, config=config, vocabulary=vocabulary, weights=weights, card=card, provenance=sources, dtype=dtype,
    )  # fmt: skip
    return remarks


def export_transformers(package: Path, out: Path) -> None:
    """Write a package as a folder that AutoModelForCausalLM and AutoTokenizer of transformers load, in float32.

    Its tokenizer begins each text with `<START>`, and its generation is greedy, so that transformers gives the text of
    `generate` with temperature 0.
    """
    found = read(package)
    common.free_folder(out)
    config, words = found.config, found.vocabulary
    layout = layout_of(config)
    settings = layout.settings(config)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PackageError(f"{out}: cannot be created ({error.strerror}); name another folder") from None
    common.save_tensors(layout.to_theirs(found.weights, config), out / "model.safetensors")
    specials = words.specials
    named = {"pad": specials.pad, "bos": specials.start, "eos": specials.end}
    ids = {f"{role}_token_id": index for role, index in named.items() if index >= 0}
    texts = {
        "config.json": _json({
            "architectures": [layout.architecture],
            "model_type": layout.model_type,
            **{theirs: getattr(config, ours) for ours, theirs in layout.sizes.items()},
            **layout.required,
            **settings,
            "tie_word_embeddings": config.tied,
            **ids,
        }),
        "generation_config.json": _json({**ids, "do_sample": False}),
        # generated from vocab.py, which the model uses
        "tokenizer.json": generating_json(words),
        # by default transformers would use the model type's own tokenizer with our merges
        "tokenizer_config.json": _json({
            "tokenizer_class": "PreTrainedTokenizerFast",
            # no unk_token: transformers would drop it from generated text, as it does special tokens
            **{f"{role}_token": words.words[index] for role, index in named.items() if index >= 0},
            "model_max_length": config.max_seq_len,
            "padding_side": "left",  # a batch of prompts is continued at its right end
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": True,  # "<END>" in a text is plain text
        }),
    }  # fmt: skip
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")


def _vocabulary(source: Path, config: dict[str, Any]) -> Vocabulary:
    """The words of tokenizer.json."""
    text = common.small_text(source / "tokenizer.json")
    try:
        return vocabulary_of(text)
    except PackageError:
        settings = source / _TOKENIZER_FILES[1]
        return foreign_vocabulary(text, roles_of(common.json_object(settings) if settings.is_file() else {}, config))


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True) + "\n"


def _weight_files(source: Path) -> list[Path]:
    """model.safetensors or all its shards; the index file is not needed, and not trusted."""
    if (source / "model.safetensors").is_file():
        return [source / "model.safetensors"]
    shards = {match[1]: match[2] for path in source.iterdir() if (match := _SHARD.fullmatch(path.name))}
    if shards:
        count = min(shards.values())
        expected = [f"{number:05d}" for number in range(1, int(count) + 1)] if len(shards) == int(count) else []
        if sorted(shards) != expected or set(shards.values()) != {count}:
            raise PackageError(f"{source}: shards of model.safetensors are missing, or of two models; fetch them again")
        return [source / f"model-{number}-of-{count}.safetensors" for number in expected]
    pickles = [path.name for path in sorted(source.iterdir()) if path.suffix in (".bin", ".pt", ".pth", ".ckpt")]
    if pickles:
        raise PackageError(
            f"{pickles[0][:80]!r} is a pickle, which can run code when it is read; if you trust it, load it with "
            "transformers and save_pretrained() it, which writes model.safetensors"
        )
    raise PackageError(f"{source}: no model.safetensors; fetch the weights too")
