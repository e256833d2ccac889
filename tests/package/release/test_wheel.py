from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from qalam_core.errors import PackageError
from qalam_core.package import generate, read
from qalam_core.package.editing.rows import scale_row
from qalam_core.package.editing.seal import seal
from qalam_core.package.release.wheel import wheel
from qalam_core.package.runtime import __version__
from tests.small_package import contents, export

HOME = f"my_model-{__version__}.dist-info"


def test_wheels_are_deterministic(package: Path, tmp_path: Path) -> None:
    first = wheel(package, tmp_path / "a", "my_model")
    again = export(tmp_path / "elsewhere" / "other_name")
    for path in again.iterdir():
        path.chmod(0o600)
        os.utime(path, (time.time() - 1e6,) * 2)
    second = wheel(again, tmp_path / "b", "my_model")
    assert first.name == second.name == f"my_model-{__version__}-py3-none-any.whl"
    assert first.read_bytes() == second.read_bytes()
    assert wheel(package, tmp_path / "a", "my_model").read_bytes() == second.read_bytes()
    assert [path.name for path in (tmp_path / "a").iterdir()] == [first.name]


@pytest.mark.parametrize("compress", [True, False])
def test_every_file_is_in_record_without_data_of_this_machine(package: Path, tmp_path: Path, compress: bool) -> None:
    path = wheel(package, tmp_path, "my_model", compress=compress)
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
        assert {entry.external_attr >> 16 for entry in entries} == {0o100644}
        assert {entry.create_system for entry in entries} == {3}
        record = archive.read(f"{HOME}/RECORD").decode().split("\n")
        for entry, line in zip(entries, record, strict=False):
            if entry.filename != f"{HOME}/RECORD":
                digest = base64.urlsafe_b64encode(hashlib.sha256(archive.read(entry)).digest()).decode().rstrip("=")
                assert line == f"{entry.filename},sha256={digest},{entry.file_size}"
        assert record[-2:] == [f"{HOME}/RECORD,,", ""]
        assert len(record) == len(entries) + 1
        names = [name for name in archive.namelist() if not name.startswith(HOME)]
        assert names == sorted(names)
        files = {name.removeprefix("my_model/") for name in names}
        assert {name: archive.read(f"my_model/{name}") for name in files} == contents(package)
        metadata = archive.read(f"{HOME}/METADATA").decode()
    for line in ("Name: my_model", f"Version: {__version__}", "Requires-Python: >=3.11", "Requires-Dist: numpy"):
        assert line in metadata.split("\n")
    assert metadata.endswith("\n\n# بطاقة\n")


@pytest.mark.usefixtures("processes")
def test_an_installed_wheel_works_with_only_numpy(package: Path, tmp_path: Path) -> None:
    path = wheel(package, tmp_path, "my_model", "1.2.post1")
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    python = bare / "bin" / "python"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    install = [*pip, "install", "--no-index", "--no-deps", "-q", str(path)]
    subprocess.run(install, check=True, env={**environment, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    numpy = tmp_path / "numpy_alone"
    numpy.mkdir()
    for found in Path(np.__file__).parent.parent.glob("numpy*"):
        (numpy / found.name).symlink_to(found)
    script = (
        "import importlib.metadata, my_model\n"
        "model, word2idx, idx2word = my_model.load_model()\n"
        "print(my_model.__file__, type(model).__name__, importlib.metadata.version('my_model'))"
    )
    environment["PYTHONPATH"] = str(numpy)
    run = {"check": True, "capture_output": True, "text": True, "env": environment, "cwd": tmp_path}
    output = subprocess.run([python, "-W", "error", "-c", script], **run).stdout.split()  # type: ignore[call-overload]
    assert Path(output[0]).is_relative_to(bare)
    assert output[1:] == ["NumpyTransformer", "1.2.post1"]
    command = [python, "-m", "my_model", "القط", "--temperature", "0", "--tokens", "5"]
    output = subprocess.run(command, **run).stdout  # type: ignore[call-overload]
    assert output == generate(read(package), "القط", 5, temperature=0) + "\n"
    assert read(Path(next(bare.glob("lib/python*/site-packages/my_model"))), strict=True).edited == ()


def test_an_edited_package_needs_a_seal_or_an_option(package: Path, tmp_path: Path) -> None:
    scale_row(package, "embedding.weight", 5, 2)
    with pytest.raises(PackageError, match="1 of 12 rows changed since export"):
        wheel(package, tmp_path / "out", "my_model")
    assert not (tmp_path / "out").exists()
    loose = wheel(package, tmp_path / "out", "my_model", edited=True).read_bytes()
    seal(package, "louder")
    with pytest.raises(PackageError, match="another wheel of this version exists; give another --version"):
        wheel(package, tmp_path / "out", "my_model")
    (kept,) = (tmp_path / "out").iterdir()
    assert kept.read_bytes() == loose, "an installer tells wheels apart by their names alone"
    assert wheel(package, tmp_path / "out", "my_model", "9.9").read_bytes() != loose
    kept.unlink()
    assert wheel(package, tmp_path / "out", "my_model").read_bytes() != loose


def test_foreign_code_is_never_in_a_wheel(package: Path, tmp_path: Path) -> None:
    (package / "extra.py").write_text("print(1)\n", encoding="utf-8")
    with pytest.raises(PackageError, match="not listed"):
        wheel(package, tmp_path, "my_model", edited=True)


@pytest.mark.parametrize(
    "name",
    ["", "my-model", "1st", "class", "_hidden", "ends_", "json", "numpy", "نموذج", "a.b", "qalam_core", "al_qalam"],
)
def test_a_name_must_be_importable(package: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(PackageError, match=r"^name "):
        wheel(package, tmp_path, name)


@pytest.mark.parametrize("version", ["", "1.0-1", "v1", "01.0", "1.0+Mine", "1.0\n", "latest"])
def test_a_version_must_be_valid(package: Path, tmp_path: Path, version: str) -> None:
    with pytest.raises(PackageError, match=r"^version "):
        wheel(package, tmp_path, "my_model", version)


def test_an_unwritable_folder_is_reported(package: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(PackageError, match="cannot be written"):
        wheel(package, tmp_path / "file", "my_model")
