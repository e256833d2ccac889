"""The command line as a user meets it: real processes, no Prefect (tests/flows has the builds)."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from qalam_core.pipeline import build as stages
from qalam_core.recipe import Recipe
from qalam_core.store import Store
from tests.conftest import tiny_recipe
from tests.flows.processes import clean_environment, qalam


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


@pytest.fixture
def package(published: stages.Published, tmp_path: Path) -> Path:
    """A copy to change."""
    shutil.copytree(published.folder / "model", tmp_path / "model")
    return tmp_path / "model"


def test_show_a_row_and_its_neighbours(package: Path) -> None:
    row = qalam("show", package, "embedding.weight", "--row", "في")
    assert row.returncode == 0, row.stderr
    assert len(row.stdout.splitlines()[-1].split()) == 32
    near = qalam("show", package, "--near", "في")
    assert near.returncode == 0
    assert len(near.stdout.splitlines()) == 8
    unknown = qalam("show", package, "nothing.weight")
    assert unknown.returncode == 2
    assert "embedding.weight" in unknown.stderr


def test_edit_verify_diff_seal(package: Path, published: stages.Published) -> None:
    assert qalam("verify", package).returncode == 0
    edited = qalam("edit", package, "--row", "في", "--scale", 2)
    assert edited.returncode == 0, edited.stderr
    changed = qalam("verify", package)
    assert changed.returncode == 1
    assert "embedding.weight: 1 of 320 rows changed" in changed.stdout
    strict = qalam("verify", package, "--strict")
    assert strict.returncode == 2
    assert "embedding.weight" in strict.stderr
    difference = qalam("diff", published.folder / "model", package, "--prompt", "يقرأ")
    assert difference.returncode == 1
    assert "embedding.weight: 1 of 320 rows" in difference.stdout
    sealed = qalam("seal", package, "--note", "في matters twice as much")
    assert sealed.returncode == 0, sealed.stderr
    assert qalam("verify", package).returncode == 0
    assert "matters twice" in (package / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert qalam("diff", package, package).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say one thing to do"),
        (["--scale", "2", "--copy", "1"], "say one thing to do"),
        (["--scale", "2"], "which row?"),
        (["--row", "4", "--column", "0"], "go together"),
        (["--row", "4", "--set", "1,x"], "numbers with commas"),
        (["--row", "4", "--set", "1,2"], "32"),
    ],
)
def test_a_wrong_edit_is_one_line(arguments: list[str], message: str, package: Path) -> None:
    done = qalam("edit", package, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert qalam("verify", package).returncode == 0


def test_a_token_is_added(package: Path) -> None:
    done = qalam("edit", package, "--add-token", "Zq")  # two bytes that no merge joins yet
    assert done.returncode == 0, done.stderr
    assert "VOCAB_SIZE    321" in qalam("show", package).stdout


def test_export_and_import_cross_over(package: Path, tmp_path: Path) -> None:
    for name in ("f16", "q8"):
        stored = qalam("export", package, tmp_path / name, "--dtype", name)
        assert stored.returncode == 0, stored.stderr
        assert qalam("verify", tmp_path / name).returncode == 0
    assert qalam("export", package, tmp_path / "gpt2", "--to", "gpt2").returncode == 0
    back = qalam("import", tmp_path / "gpt2", tmp_path / "back", "--from", "gpt2")
    assert back.returncode == 0, back.stderr
    assert qalam("diff", package, tmp_path / "back").returncode == 0
    assert qalam("export", package, tmp_path / "w.safetensors", "--to", "safetensors").returncode == 0
    again = ["import", tmp_path / "w.safetensors", tmp_path / "again", "--from", "safetensors"]
    assert "--like" in qalam(*again).stderr
    assert qalam(*again, "--like", package).returncode == 0
    assert qalam("diff", package, tmp_path / "again").returncode == 0
    assert qalam("export", package, tmp_path / "back").returncode == 2


def test_wheel_and_signature(package: Path, tmp_path: Path) -> None:
    packed = qalam("wheel", package, "--name", "stories", "--out", tmp_path)
    assert packed.returncode == 0, packed.stderr
    assert (tmp_path / "stories-0.1.0-py3-none-any.whl").is_file()
    key = ec.generate_private_key(ec.SECP256R1())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (tmp_path / "key").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pub").write_bytes(public)
    assert qalam("sign", package, "--key", tmp_path / "key").returncode == 0
    good = qalam("verify", package, "--key", tmp_path / "key.pub")
    assert good.returncode == 0, good.stderr
    assert "signed by" in good.stdout
    (package / "extra.txt").write_text("?")
    bad = qalam("verify", package, "--key", tmp_path / "key.pub")
    assert bad.returncode == 2
    assert "extra.txt" in bad.stderr


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
        [sys.executable, "-c", "from al_qalam.flows.cli.main import main; main()", *arguments],
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
    assert sorted(found) == [
        "build", "corpus", "deploy", "diff", "down", "edit", "export", "gc", "generate", "history", "import", "init",
        "promote", "report", "reproduce", "rollback", "runs", "seal", "show", "sign", "up", "verify", "watch", "wheel",
    ]  # fmt: skip


def test_help_starts_quickly() -> None:
    code = "import sys, al_qalam.flows.cli.main; assert not {'torch', 'prefect', 'pyarrow', 'tokenizers', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_says_what_made_it(published: stages.Published) -> None:
    record = json.loads((published.folder / "run.json").read_text(encoding="utf-8"))
    assert set(record["artifacts"]) == set(stages.STAGE_VERSION)
    assert record["recipe"]["name"] == "tiny"
    assert record["dependencies"]["torch"]
    assert record["machine"]["cores"]
