"""Loads the model of the package this file lies in: weights, words and the model around them.
Takes nothing but the files beside it, gives torch's model or numpy's; it never runs weights.py and never
writes.
It does not know how the model was trained, nor the project that exported it.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .reader import read_weights, tensor_shapes
from .runtime import NumpyTransformer
from .settings import read_config, read_vocabulary
from .tokenizer import Tokenizer

__all__ = ["load_model", "load_tokenizer", "load_weights"]

_FOLDER = Path(__file__).parent


def load_weights() -> dict[str, NDArray[np.float32]]:
    """Every tensor by name, as float32, read as text."""
    return read_weights(_FOLDER, tensor_shapes(read_config(_FOLDER / "config.py")))


def load_tokenizer() -> Tokenizer:
    """The tokenizer the model was trained with."""
    config = read_config(_FOLDER / "config.py")
    return Tokenizer(*read_vocabulary(_FOLDER / "vocab.py", int(config["VOCAB_SIZE"])))


def load_model(backend: str = "auto") -> tuple[Any, dict[str, int], dict[int, str]]:
    """(model, word2idx, idx2word); backend is "torch", "numpy", or "auto": torch when importable."""
    if backend not in ("auto", "torch", "numpy"):
        raise ValueError(f'backend "{backend}": "auto", "torch" or "numpy"')
    config = read_config(_FOLDER / "config.py")
    words = read_vocabulary(_FOLDER / "vocab.py", int(config["VOCAB_SIZE"])).words
    weights = read_weights(_FOLDER, tensor_shapes(config))
    idx2word = dict(enumerate(words))
    word2idx = {word: index for index, word in idx2word.items()}
    if backend == "torch" or (backend == "auto" and _torch_works()):
        return _torch_model(config, weights), word2idx, idx2word
    return NumpyTransformer(config, weights), word2idx, idx2word


def _torch_works() -> bool:
    try:
        import_module("torch")
    except ImportError:
        return False
    return True


def _torch_model(config: dict[str, Any], weights: dict[str, NDArray[np.float32]]) -> Any:
    import torch

    # by name, because only in a package does model.py lie beside this file
    transformer = import_module(".model", __package__).PureDynamicTransformer
    with torch.device("meta"):  # shapes only: no random values are drawn to be thrown away
        model = transformer(
            vocab_size=config["VOCAB_SIZE"],
            dim=config["DIM"],
            num_heads=config["NUM_HEADS"],
            num_layers=config["NUM_LAYERS"],
            max_seq_len=config["MAX_SEQ_LEN"],
            tied=config["TIED"],
        )
    state = {name: torch.from_numpy(values) for name, values in weights.items()}
    if config["TIED"]:
        state["lm_head.weight"] = state["embedding.weight"]
    model.load_state_dict(state, assign=True)
    if config["TIED"]:  # assigning made two parameters of one
        model.lm_head.weight = model.embedding.weight
    return model.eval()
