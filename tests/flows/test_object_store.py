"""The command line on a store on object storage, with Prefect."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from al_qalam.tasks.remote import stage_of
from qalam_core.files import files_below
from qalam_core.object_store import store_at
from qalam_core.objects import Objects
from qalam_core.pipeline.build import build
from qalam_core.recipe import to_toml
from qalam_core.store import Store
from tests.conftest import sentences, tiny_recipe
from tests.flows.processes import clean_environment, qalam, write_recipe
from tests.flows.test_runners import cluster
from tests.object_storage import SECRET, Server, credentials, s3_server


@pytest.fixture(scope="module")
def server(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


def test_a_build_killed_on_one_machine_is_finished_on_another(
    server: Server, api: str, corpus_file: Path, tmp_path: Path
) -> None:
    url, recipe = "s3://bucket/models", write_recipe(tmp_path / "far.toml", corpus_file, train={"steps": 150})
    bucket = ["--store", url]

    def machine(name: str) -> dict[str, str]:
        own = {"QALAM_CACHE": str(tmp_path / name), "QALAM_LEASE_SECONDS": "3", "PREFECT_API_URL": api}
        return {**credentials(server.port), **own}

    child = subprocess.Popen(
        [sys.executable, "-c", "from al_qalam.flows.cli.main import main; main()", "build", recipe, *bucket],
        env=clean_environment(**machine("one")), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    until = time.monotonic() + 120
    while child.poll() is None and not list(tmp_path.glob("one/*/artifacts/train/*.partial/checkpoint-*")):
        assert time.monotonic() < until
        time.sleep(0.02)
    assert child.poll() is None, "it ended before it could be killed"
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()

    done = qalam("build", recipe, *bucket, **machine("two"))
    assert done.returncode == 0, done.stderr
    assert "another machine, which works on train-" in done.stderr
    assert re.search("^  cached +tokenize", done.stderr, re.MULTILINE)
    listed = qalam("runs", *bucket, "--json", **machine("one"))
    (run,) = json.loads(listed.stdout)
    assert "champion" in run["states"]
    again = qalam("build", recipe, *bucket, **machine("one"))
    assert again.returncode == 0, again.stderr
    assert "built" not in again.stderr.replace("first build", "")
    shown = qalam("show", run["run"], "--store", url, **machine("three"))
    assert shown.returncode == 0, shown.stderr
    for where in ("one", "two"):
        for name in files_below(tmp_path / where):
            assert SECRET.encode() not in (tmp_path / where / name).read_bytes(), name
    server.kill()
    gone = qalam("runs", *bucket, **machine("one"))
    assert gone.returncode == 2
    assert gone.stderr.splitlines()[-1].endswith("check its address and the network")
    server.start()
    assert qalam("runs", *bucket, **machine("one")).returncode == 0


def test_workers_on_other_machines_need_no_common_path(
    server: Server, api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text, store and copies: each machine has the objects' addresses alone."""
    machines = [{**credentials(server.port), "QALAM_CACHE": str(tmp_path / name)} for name in ("flow", "one", "two")]
    for name, value in machines[0].items():
        monkeypatch.setenv(name, value)
    texts = sentences(1200)
    for number in range(6):
        Objects("s3://bucket/texts").write(f"{number}.txt", "\n".join(texts[number::6]).encode())
    recipe = tiny_recipe(Path("x"), corpus={"sources": [{"path": "s3://bucket/texts/"}]}, train={"steps": 20})
    file = tmp_path / "spread.toml"
    file.write_text(to_toml(recipe), encoding="utf-8")
    with cluster(tmp_path, machines[1:]) as (address, _):
        environment = {**machines[0], "QALAM_RUNNER": address, "PREFECT_API_URL": api}
        done = qalam("build", file, "--store", "s3://bucket/spread", **environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("built   ingest texts") == 6
    made = [len(list(tmp_path.glob(f"{name}/*/artifacts/ingest/*/manifest.json"))) for name in ("flow", "one", "two")]
    assert made[0] == 0, "no stage of the flow reads them"
    assert min(made[1:]) > 0, "both worked"
    for stage, names in {"ingest": [], "filter": ["digests.arrow", "rejects.arrow", "texts.arrow"]}.items():
        copies = [path.name for path in tmp_path.glob(f"flow/*/parts/artifacts/{stage}/*/*")]
        assert sorted({*copies}) == sorted([*names, "manifest.json"]), "what prepare reads"
        assert not list(tmp_path.glob(f"flow/*/artifacts/{stage}/*"))
    plain = build(recipe, Store(tmp_path / "plain"))
    (run,) = (tmp_path / "flow").glob(f"*/runs/{plain.run}")
    assert {path.name: path.read_bytes() for path in (run / "model").iterdir()} == {
        path.name: path.read_bytes() for path in (plain.folder / "model").iterdir()
    }
    # a fourth, to train: it finds the tokens by what the corpus's manifest says, without a copy of the text
    monkeypatch.setenv("QALAM_CACHE", str(tmp_path / "gpu"))
    gpu, digests = store_at("s3://bucket/spread"), {made.stage: made.digest for made in plain.artifacts}
    training = stage_of(gpu, recipe, digests["prepare"], digests["vocab"], None)
    assert training.identity.digest == digests["train"]
    assert not list(gpu.root.rglob("manifest.json"))
    gpu.here(training)
    assert {path.parent.parent.name for path in gpu.root.rglob("manifest.json")} == {"tokenize", "vocab"}
