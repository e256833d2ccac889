"""The folder for the Hub in TransformerLens, which names what is inside a model: the same model, seen by others."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported

import numpy as np
import pytest
import torch

from qalam_core.package import read
from qalam_core.package.inside import look_inside
from qalam_core.package.runtime.architecture import START
from qalam_core.package.runtime.numpy_model import NumpyTransformer
from qalam_core.reports.hub import export_hub
from qalam_core.tokens.tokenizer import ArabicTokenizer
from tests.package.interop.test_transformers_folder import SHAPES, build

bridges = pytest.importorskip("transformer_lens.model_bridge", reason="TransformerLens 3 or later is not installed")
pytestmark = [pytest.mark.filterwarnings("ignore")]  # the library's own


@pytest.mark.parametrize("shape", SHAPES)
def test_transformer_lens_sees_what_numpy_computes(tmp_path: Path, bpe: ArabicTokenizer, shape: str) -> None:
    package = build(tmp_path / "ours", bpe, **SHAPES[shape])
    export_hub(package, tmp_path / "hub")
    found = read(package)
    ours = NumpyTransformer(found.config, found.weights)
    ids = np.random.default_rng(0).integers(4, 300, (1, 40))
    logits, inside = ours(ids)[0], look_inside(ours, ids[0].tolist())
    theirs = bridges.TransformerBridge.boot_transformers(str(tmp_path / "hub"), device="cpu")
    with torch.inference_mode():
        their_logits, cache = theirs.run_with_cache(torch.from_numpy(ids))
        np.testing.assert_allclose(their_logits.numpy(), logits, atol=1e-4)
        for layer, attention_HTT in enumerate(inside.attention):
            np.testing.assert_allclose(cache["pattern", layer][0].numpy(), attention_HTT, atol=1e-4)
        text = "القط يأكل السمك"
        assert theirs.to_tokens(text, prepend_bos=True).tolist() == [[START, *bpe.encode(text)]]

        theirs.enable_compatibility_mode()  # folds the norms into the matrices, and centres what reads and writes
        processed = theirs(torch.from_numpy(ids)).log_softmax(-1)
        np.testing.assert_allclose(processed.numpy(), torch.from_numpy(logits).log_softmax(-1).numpy(), atol=1e-4)
