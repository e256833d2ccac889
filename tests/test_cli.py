"""The command line as a user meets it: real processes, no Prefect (tests/flows has the builds)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qalam_core import stages
from qalam_core.recipe import Recipe
from qalam_core.store import Store
from tests.conftest import tiny_recipe
from tests.flows.conftest import clean_environment, qalam


@pytest.fixture(scope="session")
def published(corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> stages.Published:
    recipe = tiny_recipe(corpus_file, train={"steps": 20})
    return stages.build(recipe, Store(tmp_path_factory.mktemp("cli") / "store"))


def root(published: stages.Published) -> Path:
    return published.folder.parent.parent


def test_runs_lists_the_champion(published: stages.Published) -> None:
    done = qalam("runs", "--store", root(published))
    assert done.returncode == 0
    assert published.run in done.stdout
    assert "passed" in done.stdout
    assert any(line.startswith("* tiny-") for line in done.stdout.splitlines())


def test_an_empty_store_says_what_to_do(tmp_path: Path) -> None:
    done = qalam("runs", "--store", tmp_path)
    assert done.returncode == 0
    assert "qalam build demo" in done.stdout


def test_show_a_run_and_a_package(published: stages.Published) -> None:
    run = qalam("show", published.run, "--store", root(published))
    assert run.returncode == 0
    assert "bits per byte" in run.stdout
    package = qalam("show", published.folder / "model")
    assert package.returncode == 0
    assert "VOCAB_SIZE    320" in package.stdout
    assert "embedding.weight" in package.stdout


def test_verify_and_edit(published: stages.Published, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    subprocess.run(["cp", "-r", str(published.folder / "model"), str(folder)], check=True)
    assert qalam("verify", folder).returncode == 0
    weights = folder / "weights.py"
    text = weights.read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith('        "'))
    weights.write_text(text.replace(row, "        [" + ", ".join(["0.5"] * 32) + "],", 1), encoding="utf-8")
    done = qalam("verify", folder)
    assert done.returncode == 1
    assert "embedding.weight" in done.stdout


def test_generate_is_seeded(published: stages.Published) -> None:
    one, two = (qalam("generate", published.folder / "model", "يقرأ", "--seed", 3, "--tokens", 8) for _ in range(2))
    assert one.returncode == 0, one.stderr
    assert one.stdout == two.stdout
    assert one.stdout.startswith("يقرأ")
    by_run = qalam("generate", published.run, "يقرأ", "--seed", 3, "--tokens", 8, "--store", root(published))
    assert by_run.stdout == one.stdout


def test_promote_keeps_the_reason(published: stages.Published) -> None:
    done = qalam("promote", published.run, "--store", root(published), "--why", "tested by hand")
    assert done.returncode == 0
    assert f"{published.run} is the champion of tiny" in done.stdout


def test_init_writes_a_recipe_that_loads(tmp_path: Path, corpus_file: Path) -> None:
    second = tmp_path / "more.txt"
    second.write_text("نص", encoding="utf-8")
    target = tmp_path / "My Model.toml"
    done = qalam("init", target, "--corpus", corpus_file, second, "--size", "medium")
    assert done.returncode == 0, done.stderr
    recipe = Recipe.load(target)
    assert recipe.name == "my-model"
    assert (recipe.model.dim, recipe.model.num_layers) == (256, 6)
    assert [Path(source.path).resolve() for source in recipe.corpus.sources] == [corpus_file, second]
    again = qalam("init", target, "--corpus", corpus_file)
    assert again.returncode == 2
    assert "is there already" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "nothing"], "neither a recipe file nor one that comes with the project (demo, "),
        (["build", "nothing.toml"], "no such recipe"),
        (["build", "demo", "--set", "train.stps=1"], 'train.stps: unknown key; did you mean "steps"?'),
        (["build", "demo", "--set", "train.steps"], "write it as section.key=value"),
        (["init", "x.toml"], "--corpus FILES"),
        (["init", "x.toml", "--corpus", "a", "--size", "huge"], "small, medium, large"),
        (["init", "no/such/x.toml", "--corpus", "a"], "there is no folder"),
        (["show", "nothing"], "qalam runs"),
        (["verify", "."], "not a package"),
        (["verify", "nothing"], "nothing"),
        (["generate", "nothing"], "qalam runs"),
        (["promote", "../.."], "qalam runs"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_status_two(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from flows.cli import main; main()", *arguments],
        cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_verbs_are_these() -> None:
    """A new command is a decision; so is its name."""
    done = qalam("--help")
    found = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("│ ") and line[2].islower()]
    assert sorted(found) == ["build", "generate", "init", "promote", "runs", "show", "verify"]


def test_help_starts_quickly() -> None:
    code = (
        "import sys, flows.cli; assert not {'torch', 'prefect', 'pyarrow', 'tokenizers', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_says_what_made_it(published: stages.Published) -> None:
    record = json.loads((published.folder / "run.json").read_text(encoding="utf-8"))
    assert set(record["artifacts"]) == set(stages.STAGE_VERSION)
    assert record["recipe"]["name"] == "tiny"
    assert record["dependencies"]["torch"]
    assert record["machine"]["cores"]
