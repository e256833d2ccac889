"""The command that measures the noise of a recipe's seed: seeds."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated

import typer

from al_qalam.flows.cli.options import RecipeArgument, SetOption, StoreOption
from al_qalam.flows.cli.terminal import bars, out
from al_qalam.flows.recipes import recipe_path
from qalam_core.errors import RecipeError
from qalam_core.files import replace_file
from qalam_core.object_store import store_at
from qalam_core.progress import Progress, Tracker
from qalam_core.recipe import Recipe, Requirements
from qalam_core.store import DEFAULT_STORE

MARGIN = 7
"""A margin of so many standard deviations refuses at most 1 in 200 trainings with another seed."""

_HEADER = re.compile(r"\s*\[\s*(.*?)\s*\]\s*(#.*)?\s*")
_VALUE = re.compile(r"(\s*seed_sd\s*=\s*)[^#\s]+(.*)", re.DOTALL)


def seeds(
    recipe: RecipeArgument,
    count: Annotated[int, typer.Option("-n", min=3, help="How many seeds to train with.")] = 5,
    store: StoreOption = DEFAULT_STORE,
    set_: SetOption = None,
) -> None:
    """Train with several seeds, and write by how much their bits per byte differ into the recipe, for the gate."""
    from qalam_core.pipeline.seeds import seed_sd, trained

    path, target = recipe_path(recipe), store_at(store)
    parsed = Recipe.load(path, set_ or ())
    target.ensure_writable()
    bits: list[float] = []
    trackers: list[Tracker] = []
    with bars() as terminal:

        def progress(seed: int) -> Progress:
            trackers.append(Tracker(f"seed {seed}", "steps", terminal.moved))
            trackers[-1](0, 0)  # the stages before training do not call it
            return trackers[-1]

        for one in trained(parsed, target, count, progress):
            terminal.stopped(trackers.pop())
            bits.append(one.bits_per_byte)
            out.print(f"seed {one.seed}: {one.bits_per_byte:.4f} bits per byte")
    found = float(f"{seed_sd(bits):.2g}")
    out.print(f"standard deviation over {count} seeds: {found:.2%} of the mean")
    if parsed.gate.tolerance < MARGIN * found:
        out.print(
            f"gate.tolerance = {parsed.gate.tolerance:g} is small for it: more than 1 in 200 trainings without a fault "
            f"would be refused; {MARGIN * found:.2g} is {MARGIN} standard deviations", soft_wrap=True,
        )  # fmt: skip
    if set_ or path != Path(recipe):
        what = "values were set on the command line" if set_ else "the recipe is part of the installation"
        out.print(
            f"{what}, so nothing was written; in your recipe, set seed_sd = {found!r} in [gate]",
            soft_wrap=True,
        )
    else:
        write_seed_sd(path, found)
        out.print(f"wrote seed_sd = {found!r} into [gate] of {path}", soft_wrap=True)


def write_seed_sd(path: Path, value: float) -> None:
    """Set gate.seed_sd in a recipe file; everything else in it is kept. Raises RecipeError when that cannot be done."""
    text = path.read_bytes().decode()
    lines, gate, section = text.splitlines(keepends=True), None, ""
    for number, line in enumerate(lines):
        if header := _HEADER.fullmatch(line):
            section = header[1]
            gate = number if section == "gate" else gate
        elif section == "gate" and (old := _VALUE.fullmatch(line)):
            lines[number] = f"{old[1]}{value!r}{old[2]}"
            break
    else:
        end = "\r\n" if "\r\n" in text else "\n"
        line = f"seed_sd = {value!r}  # {Requirements.model_fields['seed_sd'].description}{end}"
        if gate is None:
            lines += ["" if text.endswith("\n") else end, f"{end}[gate]{end}", line]
        else:
            lines.insert(gate + 1, line)
    changed = "".join(lines)
    expected = tomllib.loads(text)
    try:
        expected.setdefault("gate", {})["seed_sd"] = value
        written = tomllib.loads(changed)
    except (tomllib.TOMLDecodeError, TypeError):
        written = None
    if written != expected:
        raise RecipeError(f"{path}: seed_sd could not be written; set seed_sd = {value!r} in [gate]")
    replace_file(path, changed.encode())
