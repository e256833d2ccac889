"""The layouts of Hugging Face transformers that packages are imported from and exported to: names, shapes, config.json.

Apart from names, the only difference is that GPT-2's linear layers are Conv1D, with transposed weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn

import numpy as np
from numpy.typing import NDArray

from qalam_core.errors import PackageError
from qalam_core.package.interop import common
from qalam_core.package.runtime.architecture import ModelConfig

Tensors = dict[str, NDArray[np.float32]]

_HEAD = "lm_head.weight"
_FOREIGN = ("auto_map", "quantization_config", "pruned_heads")


class Layout:
    """A model class of transformers, which is one of our blocks under other names."""

    architecture: ClassVar[str]
    model_type: ClassVar[str]
    prefix: ClassVar[str]  # which checkpoints of the model without its head do not have
    outer: ClassVar[Mapping[str, str]]  # our tensors outside of blocks -> theirs
    layer: ClassVar[str]
    inner: ClassVar[Mapping[str, str]]  # parts of our blocks -> theirs
    buffers: ClassVar[re.Pattern[str]]  # which follow from config.json, and are there in old checkpoints
    sizes: ClassVar[Mapping[str, str]]
    required: ClassVar[Mapping[str, Any]]  # settings with only one supported value, which is also their default

    def names(self, layers: int) -> dict[str, str]:
        """Our tensor names -> theirs."""
        blocks = {
            f"blocks.{layer}.{ours}": f"{self.prefix}{self.layer}.{layer}.{theirs}"
            for layer in range(layers)
            for ours, theirs in self.inner.items()
        }
        return {**{ours: self.prefix + theirs for ours, theirs in self.outer.items()}, **blocks, _HEAD: _HEAD}

    def converted(self, name: str, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
        """A tensor of ours as theirs, or the reverse."""
        return tensor

    def to_theirs(self, weights: Mapping[str, NDArray[np.float32]], config: ModelConfig) -> Tensors:
        """Our tensors -> theirs; neither has a key for a tied head."""
        names = self.names(config.num_layers)
        return {names[name]: self.converted(name, weights[name]) for name in config.tensor_shapes()}

    def from_theirs(self, state: Mapping[str, NDArray[np.float32]]) -> Tensors:
        """Their tensors, with or without the prefix -> ours, without buffers.

        Raises PackageError for a name that the class does not have, or that is there twice.
        """
        names = {theirs: ours for ours, theirs in self.names(len(state)).items()}  # a layer has at least one tensor
        weights: Tensors = {}
        for key in [key for key in state if not self.buffers.fullmatch(key)]:
            name = names.get(key) or names.get(self.prefix + key)
            if name is None:
                raise PackageError(
                    f"{key[:80]!r} is not a tensor of {self.architecture}; only its layout can be imported"
                )
            if name in weights:
                raise PackageError(f"{key[:80]!r} is there with and without the prefix {self.prefix!r}; keep one")
            weights[name] = self.converted(name, state[key])
        return weights

    def config_of(self, theirs: Mapping[str, Any]) -> ModelConfig:
        """The settings of config.json -> ours; unsupported settings are refused by name."""
        for key, value in self.required.items():
            if theirs.get(key, value) != value:
                refuse(f"{key} is {theirs[key]!r}, but this model supports only {value!r}")
        sizes = {ours: self.size(theirs, key) for ours, key in self.sizes.items()}
        return common.model_config({**sizes, **self.settings_of(theirs, sizes)}, "config.json")

    def size(self, theirs: Mapping[str, Any], key: str) -> int:
        """An integer that config.json must have."""
        if type(theirs.get(key)) is not int:
            refuse(f"{key} must be present, and an integer")
        return int(theirs[key])

    def settings_of(self, theirs: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
        """Our settings besides the sizes."""
        raise NotImplementedError

    def settings(self, config: ModelConfig) -> dict[str, Any]:
        """The settings of config.json besides `required` and the sizes."""
        raise NotImplementedError


class GPT2(Layout):
    """GPT2LMHeadModel."""

    architecture, model_type, prefix, layer = "GPT2LMHeadModel", "gpt2", "transformer.", "h"
    outer: ClassVar = {
        "embedding.weight": "wte.weight", "pos_embedding": "wpe.weight", "ln_out.weight": "ln_f.weight",
        "ln_out.bias": "ln_f.bias",
    }  # fmt: skip
    inner: ClassVar = {
        f"{ours}.{kind}": f"{theirs}.{kind}"
        for ours, theirs in {
            "ln1": "ln_1", "qkv": "attn.c_attn", "out": "attn.c_proj", "ln2": "ln_2", "fc1": "mlp.c_fc",
            "fc2": "mlp.c_proj",
        }.items()
        for kind in ("weight", "bias")
    }  # fmt: skip
    # the causal mask; not `attn.c_attn.bias`, which is a parameter
    buffers = re.compile(r"(?:transformer\.)?h\.[0-9]+\.attn\.(?:bias|masked_bias)")
    sizes: ClassVar = {
        "vocab_size": "vocab_size", "dim": "n_embd", "num_heads": "n_head", "num_layers": "n_layer",
        "max_seq_len": "n_positions",
    }  # fmt: skip
    required: ClassVar = {
        "layer_norm_epsilon": 1e-5, "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    }  # fmt: skip
    _linear = (".qkv.weight", ".out.weight", ".fc1.weight", ".fc2.weight")
    _other_names: ClassVar = {
        "hidden_size": "n_embd", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer",
        "max_position_embeddings": "n_positions",
    }  # fmt: skip
    _activations: ClassVar = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
    _activations_back: ClassVar = {"gelu": "gelu", "gelu_tanh": "gelu_new"}

    def converted(self, name: str, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
        """Transposed, if it is a linear layer's."""
        return tensor.T if tensor.ndim == 2 and name.endswith(self._linear) else tensor

    def settings_of(self, theirs: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
        """Our settings besides the sizes."""
        for other, key in self._other_names.items():
            if theirs.get(other, theirs.get(key)) != theirs.get(key):
                refuse(f"{other} and {key} are the same setting with two values; delete one")
        if theirs.get("n_inner") not in (None, 4 * sizes["dim"]):
            refuse(f"n_inner is {theirs['n_inner']!r}, but this model's feed-forward is 4 * n_embd wide")
        activation = theirs.get("activation_function", "gelu_new")
        if not isinstance(activation, str) or activation not in self._activations:
            refuse(f"activation_function {activation!r}: this model supports {', '.join(self._activations)}")
        tied = boolean(theirs, "tie_word_embeddings", True)
        return {"tied": tied, "activation": self._activations[activation]}

    def settings(self, config: ModelConfig) -> dict[str, Any]:
        """The settings of config.json besides `required` and the sizes."""
        return {
            "n_inner": None, "activation_function": self._activations_back[config.activation or "gelu"],
            "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
        }  # fmt: skip


class Llama(Layout):
    """LlamaForCausalLM."""

    architecture, model_type, prefix, layer = "LlamaForCausalLM", "llama", "model.", "layers"
    qk_norm = False
    outer: ClassVar = {"embedding.weight": "embed_tokens.weight", "ln_out.weight": "norm.weight"}
    inner: ClassVar = {
        f"{ours}.weight": f"{theirs}.weight"
        for ours, theirs in {
            "ln1": "input_layernorm", "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
            "out": "self_attn.o_proj", "ln2": "post_attention_layernorm", "gate": "mlp.gate_proj",
            "up": "mlp.up_proj", "down": "mlp.down_proj",
        }.items()
    }  # fmt: skip
    buffers = re.compile(r"(?:model\.)?(?:layers\.[0-9]+\.self_attn\.)?rotary_emb\.inv_freq")
    sizes: ClassVar = {
        "vocab_size": "vocab_size", "dim": "hidden_size", "num_heads": "num_attention_heads",
        "num_layers": "num_hidden_layers", "max_seq_len": "max_position_embeddings", "hidden_dim": "intermediate_size",
    }  # fmt: skip
    required: ClassVar = {
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "rope_scaling": None, "pretraining_tp": 1,
    }  # fmt: skip

    def settings_of(self, theirs: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
        """Our settings besides the sizes."""
        return {
            "block": "llama",
            "tied": boolean(theirs, "tie_word_embeddings", False),
            "num_kv_heads": self._optional(theirs, "num_key_value_heads", sizes["num_heads"]),
            "head_dim": self._optional(theirs, "head_dim", max(1, sizes["dim"] // max(1, sizes["num_heads"]))),
            "rope_base": self._rope_base(theirs),
            "norm_epsilon": real(theirs, "rms_norm_eps", 1e-6),
            "qk_norm": self.qk_norm,
        }

    def _optional(self, theirs: Mapping[str, Any], key: str, default: int) -> int:
        return default if theirs.get(key) is None else self.size(theirs, key)

    def _rope_base(self, theirs: Mapping[str, Any]) -> float:
        """The base, which transformers 4 keeps as rope_theta, and transformers 5 in rope_parameters."""
        rotary = theirs.get("rope_parameters") or {}
        if not isinstance(rotary, dict):
            refuse("rope_parameters must be an object")
        if rotary.get("rope_type", "default") != "default" or set(rotary) - {"rope_type", "rope_theta"}:
            refuse(f"rope_parameters {rotary!r}: this model supports only rope_type 'default', with a rope_theta")
        found = [real(each, "rope_theta", 10_000.0) for each in (theirs, rotary) if "rope_theta" in each]
        if len(set(found)) > 1:
            refuse("rope_theta and rope_parameters are the same setting with two values; delete one")
        return found[0] if found else 10_000.0

    def settings(self, config: ModelConfig) -> dict[str, Any]:
        """The settings of config.json besides `required` and the sizes."""
        if not self.qk_norm and config.dim % config.num_heads:
            raise PackageError(
                f"{self.architecture} wants DIM {config.dim} to be a multiple of NUM_HEADS {config.num_heads}; "
                "export to safetensors"
            )
        return {
            "num_key_value_heads": config.kv_heads, "head_dim": config.head_size, "rms_norm_eps": config.norm_epsilon,
            "rope_theta": config.rope_base, "attention_dropout": 0.0,
        }  # fmt: skip


class Qwen3(Llama):
    """Qwen3ForCausalLM: LlamaForCausalLM with normalised queries and keys."""

    architecture, model_type = "Qwen3ForCausalLM", "qwen3"
    qk_norm = True
    inner: ClassVar = {
        **Llama.inner, "q_norm.weight": "self_attn.q_norm.weight", "k_norm.weight": "self_attn.k_norm.weight",
    }  # fmt: skip
    required: ClassVar = {
        "hidden_act": "silu", "attention_bias": False, "rope_scaling": None, "use_sliding_window": False,
    }  # fmt: skip

    def settings_of(self, theirs: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
        """Our settings besides the sizes; those of heads have other defaults than Llama's, and must be there."""
        for key in ("num_key_value_heads", "head_dim"):
            self.size(theirs, key)
        layers = theirs.get("layer_types") or []
        if not isinstance(layers, list) or any(kind != "full_attention" for kind in layers):
            refuse("layer_types has others than full_attention; this model supports only that")
        return super().settings_of(theirs, sizes)


LAYOUTS: tuple[Layout, ...] = (GPT2(), Llama(), Qwen3())


def layout_of(config: ModelConfig) -> Layout:
    """The layout that a package is exported to."""
    if config.block == "original":
        return LAYOUTS[0]
    return LAYOUTS[2 if config.qk_norm else 1]


def layout_in(theirs: Mapping[str, Any]) -> Layout:
    """The layout that config.json names; PackageError for another."""
    kind, architectures = theirs.get("model_type"), theirs.get("architectures")
    if kind == "aragpt2" or "AraGPT2LMHeadModel" in str(architectures):
        refuse(
            "this is AraGPT2 large or mega, a GROVER model with its own code; base and medium are GPT-2 and can be "
            "imported"
        )
    for layout in LAYOUTS:
        if kind == layout.model_type and (architectures or [layout.architecture]) == [layout.architecture]:
            for key in _FOREIGN:
                if theirs.get(key):
                    refuse(f"{key} is set, which changes the model; only plain {layout.architecture} can be imported")
            return layout
    known = ", ".join(f"{layout.model_type}'s {layout.architecture}" for layout in LAYOUTS)
    return refuse(f"model_type {kind!r}, architectures {architectures!r}: only {known} can be imported")


def boolean(theirs: Mapping[str, Any], key: str, default: bool) -> bool:
    """A truth value of config.json."""
    value = theirs.get(key, default)
    if type(value) is not bool:
        refuse(f"{key} must be true or false")
    return bool(value)


def real(theirs: Mapping[str, Any], key: str, default: float) -> float:
    """A number of config.json."""
    value = theirs.get(key, default)
    if type(value) not in (int, float):
        refuse(f"{key} must be a number")
    try:
        return float(value)
    except OverflowError:
        return refuse(f"{key} is an integer beyond every float; fix it")


def refuse(reason: str) -> NoReturn:
    """Raise PackageError for config.json."""
    raise PackageError(f"config.json:0: {reason[:400]}")
