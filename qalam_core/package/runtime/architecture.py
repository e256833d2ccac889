"""The architecture of a model: its configuration and its tensors' shapes, the only definition of both."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

SPECIALS = ("<PAD>", "<UNK>", "<START>", "<END>")
PAD, UNK, START, END = range(4)
"""Ids of the special tokens, the same in every vocabulary."""

ACTIVATIONS = ("gelu", "gelu_tanh")
"""The exact GELU, and its tanh approximation as used by GPT-2."""

BLOCKS: dict[str, tuple[str, ...]] = {
    "original": ("activation",),
    "llama": ("num_kv_heads", "head_dim", "hidden_dim", "rope_base", "norm_epsilon", "qk_norm"),
}
"""Block -> the settings that only it has. "original" is the original Al-Qalam's, which is also GPT-2's; "llama" is
that of LlamaForCausalLM, with `qk_norm` that of Qwen3ForCausalLM."""

_SHARED = ("vocab_size", "dim", "num_heads", "num_layers", "max_seq_len", "tied")
_LARGEST = {
    "vocab_size": 10**8, "dim": 10**6, "num_heads": 10**5, "num_layers": 10**4, "max_seq_len": 10**8,
    "num_kv_heads": 10**5, "head_dim": 10**6, "hidden_dim": 10**7,
}  # fmt: skip
_RANGES = {"rope_base": (1.0, 1e12), "norm_epsilon": (1e-12, 1.0)}


@dataclass(frozen=True)
class ModelConfig:
    """The constructor arguments of a transformer, except dropout; config.py has each in upper case.

    Settings of another block are None. Raises ValueError, one line that begins with the upper-case name, for values
    that no model can have.
    """

    vocab_size: int
    dim: int
    num_heads: int
    num_layers: int
    max_seq_len: int
    tied: bool = True
    block: str = "original"
    activation: str | None = None  # of "original", where "gelu" stands for None
    num_kv_heads: int | None = None  # of "llama": heads of keys and values, each for num_heads / num_kv_heads queries
    head_dim: int | None = None
    hidden_dim: int | None = None  # of the feed-forward
    rope_base: float | None = None  # of the rotary positions
    norm_epsilon: float | None = None
    qk_norm: bool | None = None  # whether queries and keys are normalised, head by head

    def __post_init__(self) -> None:
        if self.block not in BLOCKS:
            raise ValueError(f"BLOCK is one of {', '.join(BLOCKS)}")
        if self.block == "original" and self.activation is None:
            object.__setattr__(self, "activation", "gelu")
        names = self.names(self.block)
        for name in (field.name for field in fields(self)):
            if name not in names and name != "block" and getattr(self, name) is not None:
                raise ValueError(f"{name.upper()} is not a setting of BLOCK {self.block}")
        for name in names:
            self._check(name, getattr(self, name))
        if self.block == "original":
            if self.dim % self.num_heads:
                raise ValueError(f"DIM {self.dim} is not divisible by NUM_HEADS {self.num_heads}")
        elif self.num_heads % self.kv_heads:
            raise ValueError(f"NUM_HEADS {self.num_heads} is not divisible by NUM_KV_HEADS {self.kv_heads}")
        elif self.head_size % 2:
            raise ValueError(f"HEAD_DIM {self.head_size} is odd; rotary positions turn pairs")

    @staticmethod
    def _check(name: str, value: object) -> None:
        if name in _LARGEST:
            if type(value) is not int:
                raise ValueError(f"{name.upper()} must be of type int")
            if not 1 <= value <= _LARGEST[name]:
                raise ValueError(f"{name.upper()} must be between 1 and {_LARGEST[name]}")
        elif name in _RANGES:
            least, most = _RANGES[name]
            if type(value) is not float:
                raise ValueError(f"{name.upper()} must be of type float")
            if not least <= value <= most:
                raise ValueError(f"{name.upper()} must be between {least} and {most}")
        elif name == "activation":
            if value not in ACTIVATIONS:
                raise ValueError(f"ACTIVATION is one of {', '.join(ACTIVATIONS)}")
        elif type(value) is not bool:
            raise ValueError(f"{name.upper()} must be of type bool")

    @classmethod
    def names(cls, block: str = "original") -> tuple[str, ...]:
        """The names of a block's settings, in order."""
        return (*_SHARED, *BLOCKS[block])

    def arguments(self) -> dict[str, Any]:
        """The constructor arguments of the block's transformer."""
        return {name: getattr(self, name) for name in self.names(self.block)}

    def constants(self) -> dict[str, int | float | bool | str]:
        """The constants in config.py. The original's has no BLOCK, as there was only one when the format was made."""
        block: dict[str, int | float | bool | str] = {} if self.block == "original" else {"BLOCK": self.block}
        return {
            **block, **{name.upper(): value for name, value in self.arguments().items()}, "PARAMETERS": self.parameters,
        }  # fmt: skip

    def differences(self, other: ModelConfig) -> list[tuple[str, object, object]]:
        """The constants that differ, with both values; None where the block has no such constant."""
        ours, theirs = ({"BLOCK": config.block, **config.constants()} for config in (self, other))
        pairs = [(name, ours.get(name), theirs.get(name)) for name in ours | theirs]
        return [(name, before, after) for name, before, after in pairs if before != after]

    @property
    def head_size(self) -> int:
        """The dimensions of a head."""
        return self.head_dim or self.dim // self.num_heads

    @property
    def kv_heads(self) -> int:
        """The heads of keys and values."""
        return self.num_kv_heads or self.num_heads

    @property
    def parameters(self) -> int:
        """The number of values in all tensors; a tied head is counted once."""
        return sum(map(math.prod, self.tensor_shapes().values()))

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor, in the order of the weights files."""
        blocks = {
            f"blocks.{index}.{part}": shape
            for index in range(self.num_layers)
            for part, shape in (self._llama() if self.block == "llama" else self._original()).items()
        }
        embedding = (self.vocab_size, self.dim)
        shapes: dict[str, tuple[int, ...]] = {"embedding.weight": embedding}
        if self.block == "original":
            shapes["pos_embedding"] = (self.max_seq_len, self.dim)
        shapes |= {**blocks, "ln_out.weight": (self.dim,)}
        if self.block == "original":
            shapes["ln_out.bias"] = (self.dim,)
        return shapes if self.tied else {**shapes, "lm_head.weight": embedding}

    def _original(self) -> dict[str, tuple[int, ...]]:
        dim, shapes = self.dim, dict[str, tuple[int, ...]]()
        for part, rows, columns in (("qkv", 3, 1), ("out", 1, 1), ("fc1", 4, 1), ("fc2", 1, 4)):
            norm = {"qkv": "ln1", "fc1": "ln2"}.get(part)
            if norm:
                shapes[f"{norm}.weight"] = shapes[f"{norm}.bias"] = (dim,)
            shapes[f"{part}.weight"] = (rows * dim, columns * dim)
            shapes[f"{part}.bias"] = (rows * dim,)
        return shapes

    def _llama(self) -> dict[str, tuple[int, ...]]:
        dim, hidden, head = self.dim, self.hidden_dim or 0, self.head_size
        queries, keys = self.num_heads * head, self.kv_heads * head
        norms: dict[str, tuple[int, ...]] = {"q_norm.weight": (head,), "k_norm.weight": (head,)}
        return {
            "ln1.weight": (dim,),
            "q.weight": (queries, dim), "k.weight": (keys, dim), "v.weight": (keys, dim),
            **(norms if self.qk_norm else {}),
            "out.weight": (dim, queries),
            "ln2.weight": (dim,),
            "gate.weight": (hidden, dim), "up.weight": (hidden, dim), "down.weight": (dim, hidden),
        }  # fmt: skip
