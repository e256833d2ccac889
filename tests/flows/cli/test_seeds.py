"""`qalam seeds`: the noise of the seed, measured and written into the recipe."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from al_qalam.flows.cli.seeds import write_seed_sd
from qalam_core.errors import RecipeError
from qalam_core.pipeline.seeds import seed_sd
from qalam_core.recipe import Recipe, to_toml
from qalam_core.runs import Runs
from qalam_core.store import Store
from tests.conftest import tiny_recipe
from tests.flows.cli.command import qalam

START = 'name = "a"\n[[corpus.sources]]\npath = "a.txt"\n'
TEXTS = {
    "replaced": (START + "[gate]\nseed_sd = 0.5  # by hand\n", START + "[gate]\nseed_sd = 0.0042  # by hand\n"),
    "added": (
        START + "[gate] # limits\ntolerance = 0.1\n\n[train]\nsteps = 3\n",
        START + "[gate] # limits\nseed_sd = 0.0042  # COMMENT\ntolerance = 0.1\n\n[train]\nsteps = 3\n",
    ),
    "a new section": (START + "# end", START + "# end\n\n[gate]\nseed_sd = 0.0042  # COMMENT\n"),
    "line ends": (
        START.replace("\n", "\r\n") + "[gate]\r\n",
        START.replace("\n", "\r\n") + "[gate]\r\nseed_sd = 0.0042  # COMMENT\r\n",
    ),
    "another section's": (
        START + "[train]\nseed_sd = 1\n[gate]\n",
        START + "[train]\nseed_sd = 1\n[gate]\nseed_sd = 0.0042  # COMMENT\n",
    ),
}


@pytest.mark.parametrize("case", TEXTS)
def test_one_line_of_the_recipe_changes(case: str, tmp_path: Path) -> None:
    before, after = TEXTS[case]
    path = tmp_path / "a.toml"
    path.write_bytes(before.encode())
    write_seed_sd(path, 0.0042)
    assert re.sub(r"# standard deviation[^\r\n]*", "# COMMENT", path.read_bytes().decode()) == after


@pytest.mark.parametrize("text", ["gate = {tolerance = 0.1}\n" + START, "gate.tolerance = 0.1\n" + START])
def test_a_recipe_that_cannot_be_edited_is_left_alone(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"set seed_sd = 0\.0042 in \[gate\]"):
        write_seed_sd(path, 0.0042)
    assert path.read_text() == text


def test_the_written_recipe_is_the_same_but_for_it(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "corpus.jsonl")
    path = tmp_path / "a.toml"
    path.write_text(to_toml(recipe), encoding="utf-8")
    write_seed_sd(path, 0.0123)
    gate = recipe.gate.model_copy(update={"seed_sd": 0.0123})
    assert Recipe.load(path) == recipe.model_copy(update={"gate": gate})


def test_the_standard_deviation_is_that_of_a_sample() -> None:
    assert seed_sd([1.0, 2.0, 3.0]) == pytest.approx(0.5)


@pytest.mark.usefixtures("processes")
def test_seeds_are_trained_and_their_noise_is_written(corpus_file: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(corpus_file, train={"steps": 10, "checkpoint_every": 10})
    path, store = tmp_path / "tiny.toml", Store(tmp_path / "store")
    path.write_text(to_toml(recipe), encoding="utf-8")
    done = qalam("seeds", path, "-n", "3", "--store", store.root)
    assert done.returncode == 0, done.stderr
    bits = [float(found) for found in re.findall(r"^seed [789]: (\S+) bits per byte$", done.stdout, re.MULTILINE)]
    assert len(set(bits)) == 3
    written = Recipe.load(path).gate.seed_sd
    assert written == pytest.approx(float(np.std(np.log(bits), ddof=1)), rel=0.1)
    assert math.isfinite(written)
    assert f"wrote seed_sd = {written!r} into [gate] of" in done.stdout
    assert Runs(store).ids() == []  # nothing is promoted, and the next build reuses what it can
    again = qalam("seeds", path, "-n", "3", "--store", store.root, "--set", "gate.tolerance=0.0")
    assert f"{7 * written:.2g} is 7 standard deviations" in again.stdout
    assert "nothing was written" in again.stdout
