from __future__ import annotations

import ast
import json
import sys
from importlib import metadata
from pathlib import Path

import pytest

from qalam_core.errors import PackageError
from qalam_core.package import read, releases
from qalam_core.package.releases import CODE, RELEASES, code_digests, code_files
from qalam_core.package.runtime import __version__


def test_the_version_in_a_package_is_the_release() -> None:
    assert metadata.version("al-qalam") == __version__


def test_a_release_keeps_its_code() -> None:
    """Packages of a published version stay readable: once its digests are in releases.json, a change of a code file
    needs a new version."""
    known = json.loads(RELEASES.read_text(encoding="utf-8"))
    assert known.get(__version__, code_digests()) == code_digests()


def test_a_package_of_an_earlier_release_is_read(
    package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    earlier = tmp_path / "releases.json"
    earlier.write_text(json.dumps({"0.0.9": code_digests()}), encoding="utf-8")
    monkeypatch.setattr(releases, "code_digests", lambda: dict.fromkeys(CODE, "0" * 64))
    with pytest.raises(PackageError, match="not the code of a known release"):
        read(package)
    monkeypatch.setattr(releases, "RELEASES", earlier)
    assert read(package).edited == ()


def test_the_code_of_a_package_does_not_import_this_project() -> None:
    """It imports only the standard library, numpy, torch, pybase64 and other files of the package."""
    foreign = {"numpy", "torch", "pybase64"}
    for file, content in code_files().items():
        for node in ast.walk(ast.parse(content)):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 1, file
                assert f"{node.module}.py" in CODE, (file, node.module)
            assert {name.partition(".")[0] for name in names} <= foreign | sys.stdlib_module_names, file
        assert b"qalam_core" not in content, file
