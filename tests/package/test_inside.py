"""What is recorded of a model while it reads a text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qalam_core.package import ModelConfig
from qalam_core.package.inside import look_inside, probabilities
from qalam_core.package.runtime.numpy_model import NumpyTransformer
from tests.small_package import CONFIG, LLAMA, weights

IDS = [2, 4, 5, 11, 6, 3, 9]


@pytest.mark.parametrize("config", [CONFIG, replace(LLAMA, qk_norm=True), replace(CONFIG, tied=False)])
def test_it_is_what_the_model_computes(config: ModelConfig) -> None:
    model = NumpyTransformer(config, weights(config))
    before = model(np.array([IDS]))[0]
    found = look_inside(model, IDS)
    assert (len(found.features), len(found.attention)) == (config.num_layers + 1, config.num_layers)
    np.testing.assert_allclose(found.features[-1] @ model.head_CV, before[0], atol=1e-4)
    assert (model(np.array([IDS]))[0] == before).all(), "the model is as it was"
    for layers in range(1, config.num_layers):  # a model that ends there
        shorter = NumpyTransformer(replace(config, num_layers=layers), weights(config))
        np.testing.assert_allclose(found.features[layers] @ model.head_CV, shorter(np.array([IDS]))[0][0], atol=1e-4)
    said = probabilities(model, found.features[-1])
    np.testing.assert_allclose(said.sum(-1), 1, atol=1e-5)
    with pytest.raises(FloatingPointError, match="not finite"):
        probabilities(model, np.full_like(found.features[-1], np.nan))
    assert (said.argmax(-1) == before[0].argmax(-1)).all()


@pytest.mark.parametrize("config", [CONFIG, LLAMA])
def test_attention_is_a_distribution_over_what_came_before(config: ModelConfig) -> None:
    found = look_inside(NumpyTransformer(config, weights(config)), IDS).attention
    for weights_HTT in found:
        assert weights_HTT.shape == (config.num_heads, len(IDS), len(IDS))
        np.testing.assert_allclose(weights_HTT.sum(-1), 1, atol=1e-5)
        assert not np.triu(weights_HTT, 1).any()
        assert len(np.unique(weights_HTT[:, -1, 0])) == config.num_heads
