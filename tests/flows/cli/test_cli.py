"""The command line, except builds (tests/flows) and servers (tests/flows/serving)."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from typer.main import get_command

from al_qalam.flows.cli import build as build_commands
from al_qalam.flows.cli.main import GROUPS, app
from al_qalam.flows.cli.terminal import bars
from al_qalam.flows.serving.private_server import ServerError
from qalam_core.corpus.sources import SourceFile, resolve
from qalam_core.digests import State
from qalam_core.errors import CorpusError, QalamError
from qalam_core.files import sha256_bytes
from qalam_core.pipeline.build import History, InPlace, build, stages_in_order
from qalam_core.pipeline.publish import Published
from qalam_core.pipeline.stage import Stage
from qalam_core.recipe import Recipe, to_toml
from qalam_core.store import Artifact
from tests import ROOT
from tests.conftest import COLD, Built, sentences, tiny_recipe
from tests.flows.cli.command import qalam
from tests.flows.processes import clean_environment
from tests.flows.processes import qalam as qalam_process


@pytest.fixture
def published(built: Built) -> Published:
    """A run, not to be changed."""
    return built.published


def root(published: Published) -> Path:
    return published.folder.parent.parent


def test_runs_lists_the_champion(published: Published) -> None:
    done = qalam("runs", "--store", root(published))
    assert done.returncode == 0
    assert published.run in done.stdout
    assert "passed" in done.stdout
    assert any(line.startswith("* tiny-") for line in done.stdout.splitlines())


def test_an_empty_store_names_the_command_to_use(tmp_path: Path) -> None:
    done = qalam("runs", "--store", tmp_path)
    assert done.returncode == 0
    assert "qalam build demo" in done.stdout


def test_show_a_run_and_a_package(published: Published) -> None:
    run = qalam("show", published.run, "--store", root(published))
    assert run.returncode == 0
    assert "bits per byte" in run.stdout
    package = qalam("show", published.folder / "model")
    assert package.returncode == 0
    assert "VOCAB_SIZE    320" in package.stdout
    assert "embedding.weight" in package.stdout


@pytest.fixture
def package(published: Published, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(published.folder / "model", tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(("options", "reason"), [
    (["--row", "في"], "name a tensor"), (["--near", "في", "--row", "4"], "name a tensor"),
    (["embedding.weight", "--near", "في"], "show one thing"), (["--near", "في", "--full"], "show one thing"),
    (["embedding.weight", "--full"], "show one thing"), (["--full"], "--full of a run"),
])  # fmt: skip
def test_show_ignores_no_option(package: Path, options: list[str], reason: str) -> None:
    done = qalam("show", package, *options)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done
    assert reason in done.stderr


def test_show_a_row_and_its_neighbours(package: Path) -> None:
    row = qalam("show", package, "embedding.weight", "--row", "في")
    assert row.returncode == 0, row.stderr
    assert len(row.stdout.splitlines()[-1].split()) == 32
    near = qalam("show", package, "--near", "في")
    assert near.returncode == 0
    assert len(near.stdout.splitlines()) == 8
    unknown = qalam("show", package, "embeding.weight")
    assert unknown.returncode == 2
    assert 'did you mean "embedding.weight"?' in unknown.stderr


def test_verify_names_what_is_no_part_of_the_package(package: Path) -> None:
    (package / ".DS_Store").write_bytes(b"\0")
    named = qalam("verify", package)
    assert named.returncode == 0, named.stderr
    assert named.stdout.startswith(".DS_Store: not part of the package")
    strict = qalam("verify", package, "--strict")
    assert strict.returncode == 2
    assert strict.stderr.startswith("error: .DS_Store: not part of the package")


def test_the_package_of_a_run_is_not_edited_in_place(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    model = published.folder / "model"
    before = [(file.name, file.read_bytes()) for file in sorted(model.iterdir())]
    monkeypatch.chdir(published.folder)
    for folder in (model, Path("model")):
        for command in (("edit", folder, "--row", "في", "--scale", 2), ("seal", folder, "--note", "louder")):
            done = qalam(*command)
            assert done.returncode == 2
            assert done.stderr == f"error: {folder}: the package of a run; copy it elsewhere, and edit the copy\n"
    assert before == [(file.name, file.read_bytes()) for file in sorted(model.iterdir())]


def test_edit_verify_diff_seal(package: Path, published: Published) -> None:
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
    again = qalam("verify", package)
    assert (again.returncode, again.stdout) == (0, f"{package}: unchanged since it was exported or sealed\n")
    assert "matters twice" in (package / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert qalam("diff", package, package).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "choose one edit"),
        (["--scale", "2", "--copy", "1"], "choose one edit"),
        (["--scale", "2"], "no row; give one with --row"),
        (["--row", "4", "--column", "0"], "go together"),
        (["--row", "4", "--set", "1,x"], "numbers separated by commas"),
        (["--row", "4", "--set", "1,2"], "32"),
    ],
)
def test_an_invalid_edit_is_one_line(arguments: list[str], message: str, package: Path) -> None:
    done = qalam("edit", package, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert qalam("verify", package).returncode == 0


def test_a_token_is_added(package: Path) -> None:
    done = qalam("edit", package, "--add-token", "Zq")  # two bytes that no merge joins yet
    assert done.returncode == 0, done.stderr
    assert "VOCAB_SIZE    321" in qalam("show", package).stdout


def test_export_and_import_are_inverse(package: Path, tmp_path: Path) -> None:
    for name in ("f16", "q8"):
        stored = qalam("export", package, tmp_path / name, "--dtype", name)
        assert stored.returncode == 0, stored.stderr
        assert qalam("verify", tmp_path / name).returncode == 0
    assert qalam("export", package, tmp_path / "gpt2", "--to", "transformers").returncode == 0
    back = qalam("import", tmp_path / "gpt2", tmp_path / "back", "--from", "transformers")
    assert back.returncode == 0, back.stderr
    assert qalam("diff", package, tmp_path / "back").returncode == 0
    assert qalam("export", package, tmp_path / "w.safetensors", "--to", "safetensors").returncode == 0
    again = ["import", tmp_path / "w.safetensors", tmp_path / "again", "--from", "safetensors"]
    assert "--like" in qalam(*again).stderr
    assert qalam(*again, "--like", package).returncode == 0
    assert qalam("diff", package, tmp_path / "again").returncode == 0
    assert qalam("export", package, tmp_path / "back").returncode == 2
    for to in ("transformers", "hub", "safetensors"):  # these have no storage types
        stored = qalam("export", package, tmp_path / "no", "--to", to, "--dtype", "f16")
        assert (stored.returncode, (tmp_path / "no").exists()) == (2, False)
        assert f"--dtype f16: --to {to} is float32" in stored.stderr


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


def test_an_encoding_without_arabic_letters(published: Published) -> None:
    """As in a terminal without UTF-8: letters are escaped, and nothing fails."""
    done = qalam_process("generate", published.folder / "model", "يقرأ", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u064a" in done.stdout


def test_generate_is_seeded(published: Published) -> None:
    one, two = (qalam("generate", published.folder / "model", "يقرأ", "--seed", 3, "--tokens", 8) for _ in range(2))
    assert one.returncode == 0, one.stderr
    assert one.stdout == two.stdout
    assert one.stdout.startswith("يقرأ")
    by_run = qalam("generate", published.run, "يقرأ", "--seed", 3, "--tokens", 8, "--store", root(published))
    assert by_run.stdout == one.stdout
    wrong = qalam("generate", published.folder / "model", "يقرأ", "--seed", -1)
    assert (wrong.returncode, wrong.stderr) == (2, "error: a seed is from 0 to 2^64 - 1\n")


def test_every_command_is_described() -> None:
    pages = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    described = set(re.findall("^[|] `qalam ([a-z]+)", pages, re.MULTILINE))
    assert described == {name for commands in GROUPS.values() for name in commands}


def test_promote_and_history(mine: Built) -> None:
    done = qalam("promote", mine.published.run, "--store", mine.store.root, "--why", "tested by hand", "--who", "me")
    assert done.returncode == 0
    assert f"{mine.published.run} is the champion of tiny" in done.stdout
    lines = qalam("history", "tiny", "--store", mine.store.root).stdout.splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines] == [f"{mine.published.run}  promote by gate: passed the gate"]
    gate = mine.recipe.gate.model_copy(update={"tolerance": 0.03})
    same = build(mine.recipe.model_copy(update={"gate": gate}), mine.store)
    more = qalam("history", "tiny", "--store", mine.store.root).stdout.splitlines()
    assert more == [*lines, f"{same.record.created}  {same.run}  the same model as {mine.published.run}"]


def test_init_writes_a_recipe_that_loads(tmp_path: Path, corpus_file: Path) -> None:
    second = tmp_path / "more.txt"
    second.write_text("هذا نص قصير من ملف آخر", encoding="utf-8")
    target = tmp_path / "My Model.toml"
    done = qalam("init", target, "--corpus", corpus_file, second, "--size", "medium")
    assert done.returncode == 0, done.stderr
    recipe = Recipe.load(target)
    assert recipe.name == "my-model"
    assert (recipe.model.dim, recipe.model.num_layers) == (256, 6)
    assert [Path(source.path).resolve() for source in recipe.corpus.sources] == [corpus_file, second]
    again = qalam("init", target, "--corpus", corpus_file)
    assert again.returncode == 2
    assert "exists; choose another name" in again.stderr


def test_init_says_what_it_chose_and_keeps_folders_and_globs(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_bytes("\n".join(sentences(50)).encode("cp1256"))
    target = tmp_path / "recipes" / "mine.toml"
    target.parent.mkdir()
    done = qalam("init", target, "--corpus", texts, texts / "*.txt")
    assert done.returncode == 0, done.stderr
    assert f"{texts}: plain text: encoding cp1256, a document is a line\n" in done.stdout
    assert "50 documents" not in done.stdout  # both sources are counted
    assert done.stdout.count("\n") == 5
    written = target.read_text(encoding="utf-8")
    assert 'path = "../texts"' in written
    assert 'path = "../texts/*.txt"' in written
    for key in ("format", "text", "records", "bad_records", "delimiter", "unit", "encoding", "encoding_errors"):
        assert f"\n{key} = " in written
    assert "revision" not in written
    recipe = Recipe.load(target)
    assert recipe.tokenizer.vocab_size == "auto"
    assert {source.encoding for source in recipe.corpus.sources} == {"cp1256"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "nothing"], "neither a recipe file nor an included recipe (demo, "),
        (["build", "nothing.toml"], "no such recipe"),
        (["build", "demo", "--set", "train.stps=1"], 'train.stps: unknown key; did you mean "steps"?'),
        (["build", "demo", "--set", "train.steps"], "write it as section.key=value"),
        (["init", "x.toml"], "--corpus FILES"),
        (["init", "x.toml", "--corpus", "a", "--size", "huge"], "small, medium, large"),
        (["init", "no/such/x.toml", "--corpus", "a"], "there is no folder"),
        (["init", "x.toml", "--corpus", "no_such_file.txt"], "no_such_file.txt: no such file"),
        (["init", "x.toml", "--corpus", "package:nothing/a.json"], "pip install nothing"),
        (["show", "nothing"], "qalam runs"),
        (["verify", "."], "not a package"),
        (["verify", "nothing"], "nothing"),
        (["generate", "nothing"], "qalam runs"),
        (["verify", "nothing", "--signature", "x.sig"], "give the public key that verifies it with --key"),
        (["edit", "nothing", "--row", "1", "--scale", "2", "--like", "3"], "--like goes with --add-token"),
        (["edit", "nothing", "--add-token", "a", "--row", "1"], "--add-token makes a row of its own"),
        (["import", "nothing", "x", "--from", "original", "--like", "y"], "has its own vocabulary"),
        (["promote", "../.."], "qalam runs"),
    ],
)  # fmt: skip
def test_an_error_is_one_line_and_exit_status_two(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = qalam(*arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("processes")
def test_the_console_script_has_the_exit_status_and_one_line(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("qalam")
    done = subprocess.run(
        [script, "runs", "--store", tmp_path / "none"],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    wrong = qalam_process("show", "nothing", "--store", tmp_path / "none")
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1


def test_the_groups_and_the_order_of_the_commands() -> None:
    """Adding, renaming or moving a command is a decision, so the test fails."""
    assert {group: list(commands) for group, commands in GROUPS.items()} == {
        "Build": ["init", "plan", "build", "forget", "seeds", "reproduce", "gc"],
        "Look": [
            "runs",
            "report",
            "review",
            "lineage",
            "corpus",
            "trace",
            "find",
            "blame",
            "show",
            "test",
            "generate",
        ],
        "Champions": ["propose", "history", "promote", "rollback"],
        "Package": ["verify", "edit", "diff", "seal", "merge", "git", "export", "import", "wheel", "sign"],
        "Serve and deploy": ["serve", "up", "down", "deploy", "watch"],
    }
    help_text = qalam("--help").stdout
    found = [line.split()[1] for line in help_text.splitlines() if line.startswith("│ ") and line[2].islower()]
    assert found == [name for commands in GROUPS.values() for name in commands]
    positions = [help_text.index(f" {group} ") for group in GROUPS]
    assert positions == sorted(positions)


@pytest.mark.parametrize("name", [name for commands in GROUPS.values() for name in commands])
def test_every_command_has_an_example_that_parses(name: str) -> None:
    """The files that an example names need not exist."""
    (example,) = (commands[name][1] for commands in GROUPS.values() if name in commands)
    help_text = qalam(name, "--help").stdout
    assert f"Example: {example}" in " ".join(help_text.split())
    words = shlex.split(example)
    assert words[:2] == ["qalam", name]
    get_command(app).commands[name].make_context(name, words[2:])  # type: ignore[attr-defined]


def test_the_version_is_the_packages() -> None:
    assert qalam("--version").stdout == f"qalam {metadata.version('al-qalam')}\n"


def test_what_changed_silently_is_found_on_request(
    mine: Built, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a bad disk changes files: here their records are made to say that they were read as they are now."""
    recipe, where = tmp_path / "tiny.toml", ["--store", mine.store.root]
    recipe.write_text(to_toml(mine.recipe), encoding="utf-8")
    (key,) = mine.published.record.artifacts["vocab"]
    file, record = mine.store.artifact("vocab", key).path / "tokenizer.json", mine.store._remembered("vocab", key)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b" ")
    record.add(file.name, State.of(file), sha256_bytes(whole))
    record.save()
    said = f"{file.parent}: its content changed, although its size and times are the same"
    assert "0 to build" in qalam("plan", recipe, *where).stdout
    for _ in range(2):  # it changes nothing
        caplog.clear()
        assert "0 to build" not in qalam("plan", recipe, *where, "--verify").stdout
        assert caplog.messages == [said]
    done = qalam_process("build", recipe, *where, "--verify", COLUMNS="400")
    assert done.returncode == 0, done.stderr
    assert said in done.stderr + done.stdout
    assert file.read_bytes() == whole
    again = qalam("build", recipe, *where, "--verify")
    assert again.returncode == 0
    assert caplog.messages == [said]


def test_a_plan_is_a_table_or_json(mine: Built, tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(to_toml(mine.recipe), encoding="utf-8")
    where = ["--store", mine.store.root]
    unchanged = qalam("plan", recipe, *where)
    assert unchanged.returncode == 0, unchanged.stderr
    assert f"0 to build, 13 to reuse, compared with {mine.published.run}" in unchanged.stdout
    changed = qalam("plan", recipe, *where, "--set", "gate.tolerance=0.04")
    assert changed.returncode == 0
    assert re.search(r"^gate +build .*tolerance: 0\.035 -> 0\.04$", changed.stdout, re.MULTILINE), changed.stdout
    data = json.loads(qalam("plan", recipe, *where, "--set", "train.steps=61", "--json").stdout)
    assert data["against"] == mine.published.run
    built = {row["stage"]: row["reasons"] for row in data["stages"] if row["action"] == "build"}
    assert built["train"] == ["optimisation.steps: 60 -> 61"]
    work = {part.pop("stage"): part for part in data["work"]}
    trained = mine.published.record.built["train"]
    assert work["train"] == {"amount": 61, "unit": "steps", "seconds": pytest.approx(trained.seconds / 60 * 61)}
    assert data["seconds"] == sum(part["seconds"] for part in work.values())
    assert "ingest" not in work
    first = qalam("plan", recipe, "--store", tmp_path / "empty")
    assert first.returncode == 0
    assert "first build" in first.stdout
    assert re.search(r"60 steps to train: no earlier run says how long that takes$", first.stdout, re.MULTILINE)
    assert not (tmp_path / "empty").exists()


def test_each_stage_that_is_built_is_printed_with_its_reason(mine: Built, capsys: pytest.CaptureFixture[str]) -> None:
    gate = mine.recipe.gate.model_copy(update={"tolerance": 0.04})
    recipe = mine.recipe.model_copy(update={"gate": gate})
    with bars(mine.store, recipe) as terminal:

        class Watched(InPlace):
            def run(self, stage: Stage) -> Artifact:
                artifact = super().run(stage)
                terminal.finished(stage, artifact)
                return artifact

        stages_in_order(recipe, resolve(recipe.corpus.sources), History(mine.runs), Watched(mine.store))
    *cached, built = capsys.readouterr().err.splitlines()
    assert {line.split()[0] for line in cached} == {"cached"}
    assert re.search(r"^  built +gate .* tolerance: 0\.035 -> 0\.04$", built), built


def test_a_fully_cached_build_does_not_start_prefect(mine: Built, tmp_path: Path) -> None:
    """Prefect takes seconds to start; the output is that of any build."""
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(to_toml(mine.recipe), encoding="utf-8")
    code = (
        "import sys\n"
        "from al_qalam.flows.cli.main import app\n"
        "app(standalone_mode=False)\n"
        "assert not {'prefect', 'torch', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "build", recipe, "--store", mine.store.root],
        env=clean_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "every stage was cached: nothing had to be built" in done.stdout
    assert f"run      {mine.published.run}  (champion)" in done.stdout
    assert done.stderr.count("cached ") == 13


@pytest.mark.parametrize("named_by", ["environment", "file"])
def test_an_unreachable_server_is_one_line(mine: Built, tmp_path: Path, named_by: str) -> None:
    """Even where everything is reused: a server that is named must learn of the run."""
    (tmp_path / "r.toml").write_text(to_toml(mine.recipe), encoding="utf-8")
    address, environment = "http://127.0.0.1:9/api", {"PREFECT_CLIENT_MAX_RETRIES": "0"}
    if named_by == "environment":
        environment["PREFECT_API_URL"] = address
    else:
        (tmp_path / "prefect.toml").write_text(f'[api]\nurl = "{address}"\n', encoding="utf-8")
    done = qalam_process("build", "r.toml", "--store", mine.store.root, cwd=tmp_path, **environment)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: no Prefect server responds at {address}")
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("processes")
def test_help_starts_quickly() -> None:
    heavy = {"torch", "prefect", "pyarrow", "tokenizers", "datasets", "numpy"}
    code = f"import sys, al_qalam.flows.cli.main; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_records_what_it_was_built_from(built: Built) -> None:
    record = built.runs.record(built.published.run)
    assert list(record.artifacts) == [stage.name for stage in COLD]
    assert record.recipe == built.recipe
    assert record.dependencies["torch"]
    assert record.machine["cores"]


@pytest.mark.parametrize("command", [
    ("export", "{model}", "{out}"), ("export", "{model}", "{out}", "--to", "transformers"),
    ("export", "{model}", "{out}", "--to", "safetensors"), ("export", "{model}", "{out}.html"),
    ("import", "{tensors}", "{out}", "--from", "safetensors", "--like", "{model}"),
    ("wheel", "{model}", "--name", "model", "--out", "{out}"), ("sign", "{model}", "--key", "{key}", "--out", "{out}"),
])  # fmt: skip
def test_what_writes_creates_the_folders_above_or_says_why_not(
    command: tuple[str, ...], published: Published, tmp_path: Path
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (tmp_path / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, *plain))
    model, tensors = published.folder / "model", tmp_path / "tensors"
    assert qalam("export", model, tensors, "--to", "safetensors").returncode == 0
    for out, status in ((tmp_path / "a" / "b" / "c", 0), (tmp_path / "key.pem" / "c", 2)):
        names = {"model": model, "tensors": tensors, "key": tmp_path / "key.pem", "out": out}
        done = qalam(*(part.format(**names) for part in command))
        assert done.returncode == status, done.stderr
        assert done.stderr.count("\n") == (status != 0)


def test_a_build_looks_for_its_sources_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flow is given the files that were found; what was passed over is named once, and as text."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("\n".join(sentences(5)), encoding="utf-8")
    (tmp_path / "texts" / "notes\x1b[31m.md").write_text("x", encoding="utf-8")
    recipe = tmp_path / "mine.toml"
    recipe.write_text(to_toml(tiny_recipe(tmp_path / "texts")), encoding="utf-8")

    def by_flow(_: Recipe, store: object, bars: object, files: Sequence[SourceFile]) -> Published:
        raise CorpusError(", ".join(Path(file.path).name for file in files))

    monkeypatch.setattr(build_commands, "_by_flow", by_flow)
    done = qalam("build", recipe, "--store", tmp_path / "store")
    assert done.stderr.splitlines()[1:] == ["error: a.txt"], done.stderr
    assert "1 file is passed over: notes\\u001b[31m.md (unknown suffix)" in done.stderr


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ServerError("it did not start: no such table\nmore"),
            "of this build failed: it did not start: no such table",
        ),
        (RuntimeError("Failed to reach API at http://127.0.0.1:9/api/"), "of this build failed: Failed to reach API"),
        (RuntimeError("a bug"), "a bug"),
    ],
)
def test_errors_of_prefect_are_one_line(error: Exception, message: str, tmp_path: Path) -> None:
    shown = build_commands._prefect_failed(error, tmp_path)
    assert message in str(shown)
    assert "\n" not in str(shown)
    assert (f"delete {tmp_path}" in str(shown)) == isinstance(shown, QalamError) == (shown is not error)


def test_a_full_disk_is_one_line_before_prefect_starts(
    mine: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_commands, "DATABASE_BYTES", 1 << 60)
    (tmp_path / "r.toml").write_text(to_toml(mine.recipe), encoding="utf-8")
    done = qalam("build", tmp_path / "r.toml", "--store", tmp_path / "new")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no space left on the disk" in done.stderr
