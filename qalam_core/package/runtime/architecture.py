"""The architecture of a model: its configuration and its tensors' shapes, the only definition of both."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

SPECIALS = ("<PAD>", "<UNK>", "<START>", "<END>")
PAD, UNK, START, END = range(4)
"""Ids of the special tokens, the same in every vocabulary."""

ACTIVATIONS = ("gelu", "gelu_tanh")
"""The exact GELU, and its tanh approximation as used by GPT-2."""

_LARGEST = {
    "vocab_size": 10**8, "dim": 10**6, "num_heads": 10**5, "num_layers": 10**4, "max_seq_len": 10**8,
}  # fmt: skip


@dataclass(frozen=True)
class ModelConfig:
    """The constructor arguments of PureDynamicTransformer, except dropout; config.py has each in upper case.

    Raises ValueError, one line that begins with the upper-case name, for values that no model can have.
    """

    vocab_size: int
    dim: int
    num_heads: int
    num_layers: int
    max_seq_len: int
    tied: bool = True
    activation: str = "gelu"

    def __post_init__(self) -> None:
        for name, largest in _LARGEST.items():
            value = getattr(self, name)
            if type(value) is not int:
                raise ValueError(f"{name.upper()} must be of type int")
            if not 1 <= value <= largest:
                raise ValueError(f"{name.upper()} must be between 1 and {largest}")
        if type(self.tied) is not bool:
            raise ValueError("TIED must be of type bool")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"ACTIVATION is one of {', '.join(ACTIVATIONS)}")
        if self.dim % self.num_heads:
            raise ValueError(f"DIM {self.dim} is not divisible by NUM_HEADS {self.num_heads}")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The field names, in order."""
        return tuple(field.name for field in fields(cls))

    def constants(self) -> dict[str, int | bool | str]:
        """The constants in config.py."""
        return {**{name.upper(): getattr(self, name) for name in self.names()}, "PARAMETERS": self.parameters}

    @property
    def parameters(self) -> int:
        """The number of values in all tensors; a tied head is counted once."""
        return sum(map(math.prod, self.tensor_shapes().values()))

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor, in the order of the weights files."""
        dim, shapes = self.dim, dict[str, tuple[int, ...]]()
        shapes["embedding.weight"] = (self.vocab_size, dim)
        shapes["pos_embedding"] = (self.max_seq_len, dim)
        for index in range(self.num_layers):
            for part, rows, columns in (("qkv", 3, 1), ("out", 1, 1), ("fc1", 4, 1), ("fc2", 1, 4)):
                norm = {"qkv": "ln1", "fc1": "ln2"}.get(part)
                if norm:
                    shapes[f"blocks.{index}.{norm}.weight"] = shapes[f"blocks.{index}.{norm}.bias"] = (dim,)
                shapes[f"blocks.{index}.{part}.weight"] = (rows * dim, columns * dim)
                shapes[f"blocks.{index}.{part}.bias"] = (rows * dim,)
        shapes["ln_out.weight"] = shapes["ln_out.bias"] = (dim,)
        if not self.tied:
            shapes["lm_head.weight"] = shapes["embedding.weight"]
        return shapes
