"""A batch in torch gives the tokens of one in numpy, in whatever company."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch

from al_qalam.flows.serving.torch_batching import torch_batch
from qalam_core.errors import QalamError
from qalam_core.package.batching import Batch, Sampling, Text, Token
from qalam_core.package.runtime.architecture import ModelConfig
from qalam_core.package.runtime.numpy_model import NumpyTransformer
from tests.small_package import CONFIG, LLAMA, weights

CONFIGS = [CONFIG, replace(CONFIG, tied=False), LLAMA, replace(LLAMA, qk_norm=True, tied=False)]


def texts(batch: Batch, seed: int, temperature: float) -> list[list[Token]]:
    """Twelve texts that begin and end at different times, for at most three places."""
    order = random.Random(seed)
    waiting = [([order.randrange(4, 12) for _ in range(order.randint(1, 5))], order.randint(0, 5)) for _ in range(12)]
    made, left = list[list[Token]](), dict[Text, tuple[int, int]]()  # text -> (its number, tokens that it still gets)
    while waiting or left:
        while waiting and len(left) < batch.places and (not left or order.random() < 0.5):
            ids, count = waiting.pop()
            sampling = Sampling(count, temperature, logprobs=3, prompt=True)
            text, token = batch.join(ids, sampling, np.random.default_rng(len(made)))
            made.append([*text.prompt, *([token] if token else [])])
            if count > 1:
                left[text] = len(made) - 1, count - 1
            elif count:
                batch.leave(text)
        for text, drawn in batch.step() if left else ():
            assert isinstance(drawn, Token)
            number, more = left[text]
            made[number].append(drawn)
            left[text] = number, more - 1
            if more == 1:
                batch.leave(text)
                del left[text]
    return made


@pytest.mark.parametrize("cuda", [False, pytest.param(True, marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU"
))])  # fmt: skip
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_texts_are_those_of_numpy(config: ModelConfig, temperature: float, cuda: bool) -> None:
    model = NumpyTransformer(config, weights(config))
    for seed in range(5):
        ours = texts(Batch(model, 3), seed, temperature)
        theirs = texts(torch_batch(model, 3, cuda=cuda), seed, temperature)
        assert [[token.id for token in text] for text in ours] == [[token.id for token in text] for text in theirs]
        for one, other in zip(chain(*ours), chain(*theirs), strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert dict(one.top) == pytest.approx(dict(other.top), abs=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_said() -> None:
    with pytest.raises(QalamError, match="torch sees no GPU here; use torch, or numpy"):
        torch_batch(NumpyTransformer(CONFIG, weights(CONFIG)), 3, cuda=True)
