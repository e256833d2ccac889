"""GPT-2 checkpoints of Hugging Face transformers to packages and back: the same model under other names.
Takes a checkpoint folder or a package, gives the other; the mapping is one to one and loses no bit.
It does not know transformers or torch, and runs nothing that a checkpoint brings along.

A Linear of ours is a Conv1D there, with its weight transposed; nothing else differs but names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from qalam_core.errors import PackageError
from qalam_core.package.interop.common import (
    card,
    drop_tied_head,
    free_folder,
    json_object,
    model_config,
    provenance,
    read_tensors,
    save_tensors,
    small_text,
    source_folder,
)
from qalam_core.package.read import read
from qalam_core.package.runtime.architecture import SPECIALS, ModelConfig
from qalam_core.package.runtime.tokenizer import Vocabulary
from qalam_core.package.vocabulary import tokenizer_json, vocabulary_of
from qalam_core.package.write import write

__all__ = ["export_gpt2", "from_gpt2", "import_gpt2", "to_gpt2"]

_WHOLE = {
    "embedding.weight": "wte.weight", "pos_embedding": "wpe.weight", "ln_out.weight": "ln_f.weight",
    "ln_out.bias": "ln_f.bias",
}  # fmt: skip
_PARTS = {
    "ln1": "ln_1", "qkv": "attn.c_attn", "out": "attn.c_proj", "ln2": "ln_2", "fc1": "mlp.c_fc", "fc2": "mlp.c_proj",
}  # fmt: skip
_WHOLE_BACK = {theirs: ours for ours, theirs in _WHOLE.items()}
_PARTS_BACK = {theirs: ours for ours, theirs in _PARTS.items()}
_LINEAR = ("qkv", "out", "fc1", "fc2")
_OURS = re.compile(r"blocks\.([0-9]+)\.([a-z0-9]+)\.(weight|bias)")
_THEIRS = re.compile(r"h\.(0|[1-9][0-9]{0,4})\.([a-z0-9_.]+)\.(weight|bias)")
_BUFFER = re.compile(r"(?:transformer\.)?h\.[0-9]+\.attn\.(?:bias|masked_bias)")
"""The causal mask that old checkpoints stored; `attn.c_attn.bias` is a parameter, hence the whole name."""

_SIZES = {
    "vocab_size": "vocab_size", "dim": "n_embd", "num_heads": "n_head", "num_layers": "n_layer",
    "max_seq_len": "n_positions",
}  # fmt: skip
_OTHER_NAMES = {
    "hidden_size": "n_embd", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer",
    "max_position_embeddings": "n_positions",
}  # fmt: skip
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
_ACTIVATIONS_BACK = {"gelu": "gelu", "gelu_tanh": "gelu_new"}
_DEMANDED: dict[str, Any] = {
    "layer_norm_epsilon": 1e-5, "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}  # fmt: skip
"""What this model does, without alternatives; an absent key means the same in transformers."""
_FOREIGN = ("auto_map", "quantization_config", "pruned_heads")
_SHARD = re.compile(r"model-([0-9]{5})-of-([0-9]{5})\.safetensors")


def to_gpt2(weights: Mapping[str, NDArray[np.float32]], config: ModelConfig) -> dict[str, NDArray[np.float32]]:
    """Our tensors -> those of GPT2LMHeadModel; a tied head has no key in either."""
    state = {}
    for name in config.tensor_shapes():
        theirs, part = name, ""
        if name in _WHOLE:
            theirs = f"transformer.{_WHOLE[name]}"
        elif match := _OURS.fullmatch(name):
            part = match[2]
            theirs = f"transformer.h.{match[1]}.{_PARTS[part]}.{match[3]}"
        state[theirs] = weights[name].T if part in _LINEAR and weights[name].ndim == 2 else weights[name]
    return state


def from_gpt2(state: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Tensors of GPT2LMHeadModel -> ours; with or without the prefix `transformer.`, masks left out.

    Raises PackageError on a name that GPT-2 does not have, or has twice.
    """
    weights: dict[str, NDArray[np.float32]] = {}
    for name, tensor in state.items():
        if _BUFFER.fullmatch(name):
            continue
        bare, part = name.removeprefix("transformer."), ""
        ours = _WHOLE_BACK.get(bare) or (name if name == "lm_head.weight" else None)
        if match := _THEIRS.fullmatch(bare):
            part = _PARTS_BACK.get(match[2], "")
            ours = f"blocks.{match[1]}.{part}.{match[3]}" if part else None
        if ours is None:
            raise PackageError(f"{name[:80]!r} is no tensor of GPT2LMHeadModel; only its layout can be imported")
        if ours in weights:
            raise PackageError(f"{name[:80]!r} is there with and without the prefix 'transformer.'; keep one")
        weights[ours] = tensor.T if part in _LINEAR and tensor.ndim == 2 else tensor
    return weights


def import_gpt2(source: Path, out: Path, *, vocabulary: Vocabulary | None = None, dtype: str = "f32") -> list[str]:
    """Write the GPT-2 checkpoint in the folder `source` as a package into `out`; returns remarks.

    Words come from `vocabulary` when it is given, else from tokenizer.json, which must be of this project's
    kind: GPT-2's own tokenizers split text in another way and keep no place for <PAD>, <UNK>, <START>, <END>.
    """
    source = source_folder(source, "a checkpoint")
    free_folder(out)
    config = _config_of(json_object(source / "config.json"))
    files = _weight_files(source)
    if vocabulary is None:
        vocabulary = _vocabulary(source)
    if len(vocabulary.words) != config.vocab_size:
        raise PackageError(
            f"config.json:0: vocab_size is {config.vocab_size}, but the tokenizer has {len(vocabulary.words)} "
            "words; they must be those the model was trained with"
        )
    weights = from_gpt2(read_tensors(files, lambda name: not _BUFFER.fullmatch(name)))
    if config.tied and "lm_head.weight" in weights:
        weights = drop_tied_head(weights, files[-1].name)
    read_from = [source / "config.json", *files]
    write(
        out,
        config=config,
        vocabulary=vocabulary,
        weights=weights,
        card=card("It was imported from a GPT-2 checkpoint in the layout of Hugging Face transformers.", read_from),
        provenance=provenance(read_from),
        dtype=dtype,
    )
    return []


def export_gpt2(package: Path, out: Path) -> None:
    """Write a package as a folder that GPT2LMHeadModel and AutoTokenizer load: float32, the same logits."""
    found = read(package)
    free_folder(out)
    config, words = found.config, found.vocabulary
    out.mkdir(parents=True, exist_ok=True)
    save_tensors(to_gpt2(found.weights, config), out / "model.safetensors")
    pad, unk, start, end = SPECIALS
    texts = {
        "config.json": _json({
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
            **_DEMANDED,
            "n_inner": None,
            "activation_function": _ACTIVATIONS_BACK[config.activation],
            "tie_word_embeddings": config.tied,
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "pad_token_id": 0,
            "bos_token_id": 2,
            "eos_token_id": 3,
        }),
        # made anew from vocab.py, which is what the model runs with
        "tokenizer.json": tokenizer_json(words),
        # without this class name transformers would build GPT-2's own tokenizer over our merges
        "tokenizer_config.json": _json({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": pad,
            "unk_token": unk,
            "bos_token": start,
            "eos_token": end,
            "model_max_length": config.max_seq_len,
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": True,  # text that spells "<END>" is text
        }),
    }  # fmt: skip
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True) + "\n"


def _config_of(theirs: dict[str, Any]) -> ModelConfig:
    """config.json -> our settings; what our model cannot do is refused by name."""
    kind, architectures = theirs.get("model_type"), theirs.get("architectures") or ["GPT2LMHeadModel"]
    if kind == "aragpt2" or "AraGPT2LMHeadModel" in str(architectures):
        _refuse(
            "this is AraGPT2 large or mega, a model of GROVER's kind with code of its own; base and medium are GPT-2 "
            "and can be imported"
        )
    if kind != "gpt2" or architectures != ["GPT2LMHeadModel"]:
        _refuse(f"model_type {kind!r}, architectures {architectures!r}: only gpt2's GPT2LMHeadModel can be imported")
    for key in _FOREIGN:
        if theirs.get(key):
            _refuse(f"{key} is set, which changes the model; only plain GPT-2 can be imported")
    for key, value in _DEMANDED.items():
        if theirs.get(key, value) != value:
            _refuse(f"{key} is {theirs[key]!r}, but this model has {value!r} and no other")
    for other, key in _OTHER_NAMES.items():
        if theirs.get(other, theirs.get(key)) != theirs.get(key):
            _refuse(f"{other} and {key} are one setting with two values; delete one")
    sizes: dict[str, int] = {}
    for ours, key in _SIZES.items():
        if type(theirs.get(key)) is not int:
            _refuse(f"{key} must be there, and be a whole number")
        sizes[ours] = theirs[key]
    if theirs.get("n_inner") not in (None, 4 * sizes["dim"]):
        _refuse(f"n_inner is {theirs['n_inner']!r}, but this model's feed-forward is 4 * n_embd wide")
    activation = theirs.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        _refuse(f"activation_function {activation!r}: this model knows {', '.join(_ACTIVATIONS)}")
    tied = theirs.get("tie_word_embeddings", True)
    if type(tied) is not bool:
        _refuse("tie_word_embeddings must be true or false")
    return model_config({**sizes, "tied": tied, "activation": _ACTIVATIONS[activation]}, "config.json")


def _refuse(reason: str) -> NoReturn:
    raise PackageError(f"config.json:0: {reason[:400]}")


def _weight_files(source: Path) -> list[Path]:
    """model.safetensors, or all its shards; their index is not needed, and names in it are not trusted."""
    if (source / "model.safetensors").is_file():
        return [source / "model.safetensors"]
    shards = {match[1]: match[2] for path in source.iterdir() if (match := _SHARD.fullmatch(path.name))}
    if shards:
        count = min(shards.values())
        expected = [f"{number:05d}" for number in range(1, int(count) + 1)] if len(shards) == int(count) else []
        if sorted(shards) != expected or set(shards.values()) != {count}:
            raise PackageError(f"{source}: shards of model.safetensors are missing or of two models; fetch them again")
        return [source / f"model-{number}-of-{count}.safetensors" for number in expected]
    pickles = [path.name for path in sorted(source.iterdir()) if path.suffix in (".bin", ".pt", ".pth", ".ckpt")]
    if pickles:
        raise PackageError(
            f"{pickles[0][:80]!r} is a pickle, which may run code when it is read; where you trust it, load it with "
            "transformers and save_pretrained() it, which writes model.safetensors"
        )
    raise PackageError(f"{source}: no model.safetensors; fetch the weights too")


def _vocabulary(source: Path) -> Vocabulary:
    if not (source / "tokenizer.json").is_file():
        raise PackageError(f"{source}: no tokenizer.json; name a package to take the words from")
    return vocabulary_of(small_text(source / "tokenizer.json"))
