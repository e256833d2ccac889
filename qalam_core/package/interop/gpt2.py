"""Imports and exports GPT-2 checkpoints of Hugging Face transformers, losslessly and without executing their code.

Apart from names, the only difference is that our Linear layers are Conv1D there, with transposed weights.
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
from qalam_core.package.interop import common
from qalam_core.package.read import read
from qalam_core.package.runtime.architecture import END, PAD, SPECIALS, START, ModelConfig
from qalam_core.package.runtime.tokenizer import Vocabulary
from qalam_core.package.vocabulary import generating_json, vocabulary_of
from qalam_core.package.write import write

_GLOBAL = {
    "embedding.weight": "wte.weight", "pos_embedding": "wpe.weight", "ln_out.weight": "ln_f.weight",
    "ln_out.bias": "ln_f.bias",
}  # fmt: skip
_PARTS = {
    "ln1": "ln_1", "qkv": "attn.c_attn", "out": "attn.c_proj", "ln2": "ln_2", "fc1": "mlp.c_fc", "fc2": "mlp.c_proj",
}  # fmt: skip
_HEAD = "lm_head.weight"
_LINEAR = (".qkv.weight", ".out.weight", ".fc1.weight", ".fc2.weight")
_BUFFER = re.compile(r"(?:transformer\.)?h\.[0-9]+\.attn\.(?:bias|masked_bias)")
"""The causal mask in old checkpoints; not `attn.c_attn.bias`, which is a parameter."""

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
_REQUIRED: dict[str, Any] = {
    "layer_norm_epsilon": 1e-5, "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}  # fmt: skip
"""Settings with only one supported value, which is also the default in transformers."""
_FOREIGN = ("auto_map", "quantization_config", "pruned_heads")
_SHARD = re.compile(r"model-([0-9]{5})-of-([0-9]{5})\.safetensors")


def _names(layers: int) -> dict[str, str]:
    """Our tensor names -> those of GPT2LMHeadModel."""
    blocks = {
        f"blocks.{layer}.{ours}.{kind}": f"transformer.h.{layer}.{theirs}.{kind}"
        for layer in range(layers)
        for ours, theirs in _PARTS.items()
        for kind in ("weight", "bias")
    }
    return {**{ours: f"transformer.{theirs}" for ours, theirs in _GLOBAL.items()}, **blocks, _HEAD: _HEAD}


def _converted(name: str, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
    return tensor.T if tensor.ndim == 2 and name.endswith(_LINEAR) else tensor


def to_gpt2(weights: Mapping[str, NDArray[np.float32]], config: ModelConfig) -> dict[str, NDArray[np.float32]]:
    """Our tensors -> those of GPT2LMHeadModel; neither has a key for a tied head."""
    names = _names(config.num_layers)
    return {names[name]: _converted(name, weights[name]) for name in config.tensor_shapes()}


def from_gpt2(state: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Tensors of GPT2LMHeadModel, with or without the prefix `transformer.` -> ours, without masks.

    Raises PackageError for a name that GPT-2 does not have, or that is there twice.
    """
    names = {theirs: ours for ours, theirs in _names(len(state)).items()}  # each layer has at least one tensor
    weights: dict[str, NDArray[np.float32]] = {}
    for key in [key for key in state if not _BUFFER.fullmatch(key)]:
        name = names.get(key) or names.get(f"transformer.{key}")
        if name is None:
            raise PackageError(f"{key[:80]!r} is not a tensor of GPT2LMHeadModel; only its layout can be imported")
        if name in weights:
            raise PackageError(f"{key[:80]!r} is there with and without the prefix 'transformer.'; keep one")
        weights[name] = _converted(name, state[key])
    return weights


def import_gpt2(source: Path, out: Path, *, vocabulary: Vocabulary | None = None, dtype: str = "f32") -> list[str]:
    """Write the GPT-2 checkpoint in the folder `source` as a package into `out`; -> remarks.

    Words are `vocabulary`, or by default those of tokenizer.json, which must be of this project's kind: GPT-2's own
    tokenizers split text differently and have no <PAD>, <UNK>, <START>, <END>. Rows of the embedding beyond the words
    are dropped, with a remark.
    """
    source = common.source_folder(source, "a checkpoint")
    common.free_folder(out)
    config = _config_of(common.json_object(source / "config.json"))
    files = _weight_files(source)
    if vocabulary is None:
        if not (source / "tokenizer.json").is_file():
            raise PackageError(f"{source}: no tokenizer.json; name a package to take the words from")
        vocabulary = vocabulary_of(common.small_text(source / "tokenizer.json"))
    weights = from_gpt2(common.read_tensors(files, lambda name: not _BUFFER.fullmatch(name)))
    if config.tied:
        weights = common.without_tied_head(weights, files[-1].name)
    config, weights, remarks = common.without_padding(config, weights, len(vocabulary.words), "config.json")
    sources = common.provenance([source / "config.json", *files])
    card = common.card("It was imported from a GPT-2 checkpoint in the layout of Hugging Face transformers.", sources)
    write(
        out, config=config, vocabulary=vocabulary, weights=weights, card=card, provenance=sources, dtype=dtype,
    )  # fmt: skip
    return remarks


def export_gpt2(package: Path, out: Path) -> None:
    """Write a package as a folder that GPT2LMHeadModel and AutoTokenizer load, in float32.

    Its tokenizer begins each text with <START>, and its generation is greedy, so that transformers gives the text of
    `generate` with temperature 0.
    """
    found = read(package)
    common.free_folder(out)
    config, words = found.config, found.vocabulary
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PackageError(f"{out}: cannot be created ({error.strerror}); name another folder") from None
    common.save_tensors(to_gpt2(found.weights, config), out / "model.safetensors")
    pad, _, start, end = SPECIALS
    ids = {"pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END}
    texts = {
        "config.json": _json({
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
            **_REQUIRED,
            "n_inner": None,
            "activation_function": _ACTIVATIONS_BACK[config.activation],
            "tie_word_embeddings": config.tied,
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
            **ids,
        }),
        "generation_config.json": _json({**ids, "do_sample": False}),
        # generated from vocab.py, which the model uses
        "tokenizer.json": generating_json(words),
        # by default transformers would use GPT-2's own tokenizer with our merges
        "tokenizer_config.json": _json({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": pad,
            # no unk_token: transformers would drop it from generated text, as it does special tokens
            "bos_token": start,
            "eos_token": end,
            "model_max_length": config.max_seq_len,
            "padding_side": "left",  # a batch of prompts is continued at its right end
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": True,  # "<END>" in a text is plain text
        }),
    }  # fmt: skip
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True) + "\n"


def _config_of(theirs: dict[str, Any]) -> ModelConfig:
    """config.json -> our settings; unsupported settings are refused by name."""
    kind, architectures = theirs.get("model_type"), theirs.get("architectures") or ["GPT2LMHeadModel"]
    if kind == "aragpt2" or "AraGPT2LMHeadModel" in str(architectures):
        _refuse(
            "this is AraGPT2 large or mega, a GROVER model with its own code; base and medium are GPT-2 and can be "
            "imported"
        )
    if kind != "gpt2" or architectures != ["GPT2LMHeadModel"]:
        _refuse(f"model_type {kind!r}, architectures {architectures!r}: only gpt2's GPT2LMHeadModel can be imported")
    for key in _FOREIGN:
        if theirs.get(key):
            _refuse(f"{key} is set, which changes the model; only plain GPT-2 can be imported")
    for key, value in _REQUIRED.items():
        if theirs.get(key, value) != value:
            _refuse(f"{key} is {theirs[key]!r}, but this model supports only {value!r}")
    for other, key in _OTHER_NAMES.items():
        if theirs.get(other, theirs.get(key)) != theirs.get(key):
            _refuse(f"{other} and {key} are the same setting with two values; delete one")
    sizes: dict[str, int] = {}
    for ours, key in _SIZES.items():
        if type(theirs.get(key)) is not int:
            _refuse(f"{key} must be present, and an integer")
        sizes[ours] = theirs[key]
    if theirs.get("n_inner") not in (None, 4 * sizes["dim"]):
        _refuse(f"n_inner is {theirs['n_inner']!r}, but this model's feed-forward is 4 * n_embd wide")
    activation = theirs.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        _refuse(f"activation_function {activation!r}: this model supports {', '.join(_ACTIVATIONS)}")
    tied = theirs.get("tie_word_embeddings", True)
    if type(tied) is not bool:
        _refuse("tie_word_embeddings must be true or false")
    return common.model_config({**sizes, "tied": tied, "activation": _ACTIVATIONS[activation]}, "config.json")


def _refuse(reason: str) -> NoReturn:
    raise PackageError(f"config.json:0: {reason[:400]}")


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
