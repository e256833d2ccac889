"""The resolution of "auto"."""

from __future__ import annotations

import shutil

import torch

from qalam_core.recipe import Optimisation
from qalam_core.training.hardware import choose_numerics


def test_auto_compiles_only_long_runs() -> None:
    device = torch.device("cpu")
    short, long = (choose_numerics(Optimisation(steps=steps), device, 1_400_000, 128) for steps in (100, 100_000))
    assert short.compile == "off"
    assert long.compile == ("on" if shutil.which("g++") else "off")
