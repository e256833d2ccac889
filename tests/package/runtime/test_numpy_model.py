from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qalam_core.evaluation.integrity import transformer
from qalam_core.model import _sample
from qalam_core.package.runtime.architecture import ModelConfig
from qalam_core.package.runtime.numpy_model import _GELUS, NumpyTransformer, draw, erf, sample
from tests.conftest import examples
from tests.small_package import CONFIG, LLAMA, weights


def test_erf_is_exact_to_1e_6() -> None:
    x = np.linspace(-6, 6, 20001, dtype=np.float32)
    exact = np.array([math.erf(value) for value in x.astype(np.float64)])
    assert np.abs(erf(x) - exact).max() < 1e-6


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("base", [CONFIG, LLAMA, replace(LLAMA, qk_norm=True)])
def test_numpy_and_torch_agree(tied: bool, base: ModelConfig) -> None:
    config = replace(base, tied=tied)
    values = weights(config)
    theirs = transformer(config, {name: torch.from_numpy(tensor) for name, tensor in values.items()})
    ours = NumpyTransformer(config, values)
    assert ours.count_parameters() == theirs.count_parameters()
    ids = np.random.default_rng(1).integers(0, 12, (3, 10))
    logits, loss = ours(ids)
    assert loss is None
    with torch.no_grad():
        assert np.abs(logits - theirs(torch.from_numpy(ids))[0].numpy()).max() < 1e-4
    for length in (1, 4, 10, 13):  # 13 and every continuation past 10 slide the window
        prompt = np.random.default_rng(length).integers(0, 12, (4, length))
        expected = theirs.generate(torch.from_numpy(prompt), 12, temperature=0)
        assert ours.generate(prompt, 12, temperature=0).tolist() == expected.tolist()
    with pytest.raises(ValueError, match="context is 10"):
        ours(np.zeros((1, 11), np.int64))
    with pytest.raises(ValueError, match="no tokens"):
        ours.generate(np.zeros((1, 0), np.int64))


@pytest.mark.parametrize(
    "option",
    [
        {"max_new_tokens": -1}, {"temperature": -1.0}, {"temperature": math.nan}, {"top_k": -1}, {"top_p": -0.1},
        {"top_p": 1.1}, {"seed": -1}, {"seed": 2**64},
    ],
)  # fmt: skip
def test_an_option_out_of_its_range_is_refused(option: dict[str, Any]) -> None:
    ours = NumpyTransformer(CONFIG, weights())
    theirs = transformer(CONFIG, {name: torch.from_numpy(tensor) for name, tensor in weights().items()})
    both: list[tuple[Any, Any]] = [(ours, np.array([[4]])), (theirs, torch.tensor([[4]]))]
    for model, prompt in both:
        assert model.generate(prompt, 1, 0.0, 0, 2**64 - 1, 0.0).shape == (1, 2)
        with pytest.raises(ValueError, match=" from 0 to "):
            model.generate(prompt, **option)


def test_sampling_is_repeatable_and_respects_top_k() -> None:
    model = NumpyTransformer(CONFIG, weights())
    prompt = np.array([[4]] * 64)
    assert model.generate(prompt, 6, seed=7).tolist() == model.generate(prompt, 6, seed=7).tolist()
    logits = model(prompt[:1])[0][0, -1]
    allowed = set(np.argsort(logits)[-3:].tolist())
    drawn = set(model.generate(prompt, 1, temperature=2.0, top_k=3, seed=1)[:, 1].tolist())
    assert drawn == allowed
    greedy = model.generate(prompt, 4, temperature=0)
    assert model.generate(prompt, 4, top_k=1, seed=3).tolist() == greedy.tolist()


def test_top_p_keeps_the_fewest_tokens_with_the_probability() -> None:
    logits = np.log(np.array([[0.1, 0.5, 0.05, 0.3, 0.05]], np.float32))
    random = np.random.default_rng(0)
    for share, allowed in ((0.01, {1}), (0.49, {1}), (0.51, {1, 3}), (0.85, {0, 1, 3}), (1.0, {0, 1, 2, 3, 4})):
        drawn = {int(sample(logits, 1.0, 0, share, random)[0]) for _ in range(300)}
        assert drawn == allowed, share


class Fixed:
    """A random generator with a known draw."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self) -> float:
        return self.value


@settings(max_examples=examples(50))
@given(
    st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=40), st.sampled_from([0.0, 0.5, 1 - 2**-53]),
    st.sampled_from([0.0, 5e-324, 1e-30, 0.3, 1.0, 2.0]), st.integers(0, 41), st.sampled_from([1e-9, 0.3, 0.999, 1.0]),
)  # fmt: skip
def test_a_draw_is_one_of_the_allowed(
    values: list[float], value: float, temperature: float, top_k: int, top_p: float
) -> None:
    """At the ends of the interval as well, where sums are rounded."""
    logits = np.array(values, np.float32)
    drawn = draw(logits, temperature, top_k, top_p, Fixed(value))  # type: ignore[arg-type]
    assert 0 <= drawn < len(logits)
    if 0 < top_k < len(logits):
        assert (logits > logits[drawn]).sum() < top_k
    if temperature < 1e-20 or top_p == 1e-9:
        assert logits[drawn] == logits.max()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("top_k", [0, 2])
def test_logits_that_are_not_finite_are_refused(bad: float, temperature: float, top_k: int) -> None:
    logits = np.array([1.0, bad, 0.5, 0.25], np.float32)
    if bad == -math.inf:  # one of them is a probability of 0, but not all
        assert sample(logits[None], temperature, top_k, 1.0, np.random.default_rng(0)) != [1]
        logits[:] = bad
    with pytest.raises(FloatingPointError, match="not finite"):
        sample(logits[None], temperature, top_k, 1.0, np.random.default_rng(0))
    with pytest.raises(FloatingPointError, match="not finite"):
        _sample(torch.from_numpy(logits)[None], temperature, top_k, 1.0, None)


def test_finished_rows_are_filled_with_end() -> None:
    values = weights()
    values["ln_out.weight"][:] = 0
    values["embedding.weight"][3] *= 10
    values["ln_out.bias"] = values["embedding.weight"][3] * 100  # <END> always wins
    out = NumpyTransformer(CONFIG, values).generate(np.array([[4, 5]]), 5, temperature=0)
    assert out.tolist() == [[4, 5, 3]]


def gelu_by_definition(x: float, activation: str) -> float:
    if activation == "gelu":
        return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_both_backends_support_both_activations(activation: str) -> None:
    config = replace(CONFIG, activation=activation)
    values = weights(config, scale=0.6)
    ours = NumpyTransformer(config, values)
    theirs = transformer(config, {name: torch.from_numpy(tensor) for name, tensor in values.items()})
    assert theirs.activation == ours.activation == activation
    x = np.linspace(-5, 5, 401, dtype=np.float32)
    expected = [gelu_by_definition(float(value), activation) for value in x]
    assert np.abs(_GELUS[activation](x) - expected).max() < 2e-6
    ids = np.random.default_rng(1).integers(0, 12, (3, 10))
    with torch.inference_mode():
        logits = theirs(torch.from_numpy(ids))[0].numpy()
    assert np.abs(ours(ids)[0] - logits).max() < 1e-4
    other = NumpyTransformer(replace(config, activation="gelu" if activation == "gelu_tanh" else "gelu_tanh"), values)
    assert np.abs(other(ids)[0] - logits).max() > 1e-4  # or this test would not notice a mix-up
