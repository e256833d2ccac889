from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from qalam_core import model as models
from qalam_core.model import BLOCKS, GELUS
from qalam_core.package.runtime.architecture import ACTIVATIONS, END, PAD, SPECIALS, START, UNK, ModelConfig
from tests.small_package import CONFIG, LLAMA


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("base", [CONFIG, LLAMA, replace(LLAMA, qk_norm=True, num_kv_heads=1)])
def test_tensor_shapes_equal_those_of_the_torch_model(tied: bool, layers: int, base: ModelConfig) -> None:
    config = replace(base, tied=tied, num_layers=layers)
    with torch.device("meta"):
        model = BLOCKS[config.block](**config.arguments())
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if tied:
        assert model.lm_head.weight is model.embedding.weight
        del shapes["lm_head.weight"]
    assert config.tensor_shapes() == shapes
    assert config.parameters == model.count_parameters()
    assert {name: getattr(model, name) for name in ModelConfig.names(config.block)} == config.arguments()


def test_constants_repeated_in_the_torch_model_are_equal() -> None:
    """model.py imports only torch, so it repeats some constants."""
    assert tuple(GELUS) == ACTIVATIONS
    assert models.END == END
    assert [SPECIALS[index] for index in (PAD, UNK, START, END)] == ["<PAD>", "<UNK>", "<START>", "<END>"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "DIM 8 is not divisible by NUM_HEADS 3"),
        ({"dim": 0}, "DIM must be between 1 and"),
        ({"dim": True}, "DIM must be of type int"),
        ({"dim": 8.0}, "DIM must be of type int"),
        ({"num_layers": 10**9}, "NUM_LAYERS must be between 1 and"),
        ({"vocab_size": -1}, "VOCAB_SIZE must be between 1 and"),
        ({"tied": 1}, "TIED must be of type bool"),
        ({"activation": "relu"}, "ACTIVATION is one of gelu, gelu_tanh"),
        ({"block": "mamba"}, "BLOCK is one of original, llama"),
        ({"qk_norm": True}, "QK_NORM is not a setting of BLOCK original"),
        ({"rope_base": 1e4}, "ROPE_BASE is not a setting of BLOCK original"),
    ],
)
def test_invalid_values_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        replace(CONFIG, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "gelu"}, "ACTIVATION is not a setting of BLOCK llama"),
        ({"num_kv_heads": 3}, "NUM_HEADS 4 is not divisible by NUM_KV_HEADS 3"),
        ({"num_kv_heads": None}, "NUM_KV_HEADS must be of type int"),
        ({"head_dim": 5}, "HEAD_DIM 5 is odd"),
        ({"hidden_dim": 0}, "HIDDEN_DIM must be between 1 and"),
        ({"rope_base": 10_000}, "ROPE_BASE must be of type float"),
        ({"rope_base": math.inf}, "ROPE_BASE must be between"),
        ({"rope_base": math.nan}, "ROPE_BASE must be between"),
        ({"norm_epsilon": 0.0}, "NORM_EPSILON must be between"),
        ({"qk_norm": 1}, "QK_NORM must be of type bool"),
    ],
)
def test_invalid_values_of_llama_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        replace(LLAMA, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["depth", "parameters"])
def test_unknown_settings_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        ModelConfig(**{**asdict(CONFIG), name: 3})
