"""The names that `qalam_core` exports, and that the documentation uses no others."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path

import pytest

import qalam_core
from tests import ROOT

HEAVY = ("datasets", "numpy", "prefect", "pyarrow", "pydantic", "rich", "safetensors", "tokenizers", "torch", "typer")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_exported_names_are_sorted() -> None:
    assert qalam_core.__all__ == sorted(set(qalam_core.__all__))


@pytest.mark.parametrize("name", qalam_core.__all__)
def test_every_exported_name_resolves(name: str) -> None:
    value = getattr(qalam_core, name)
    assert value is getattr(qalam_core, name)
    if name != "__version__":
        assert value.__name__ == name
        assert getattr(import_module(value.__module__), name) is value


def test_every_name_that_resolves_is_exported() -> None:
    names = [name for names in vars(qalam_core)["_MODULES"].values() for name in names]
    assert sorted([*names, "__version__"]) == qalam_core.__all__


def test_type_checkers_see_the_names_that_resolve() -> None:
    tree = ast.parse(Path(qalam_core.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    seen = {
        node.module.removeprefix("qalam_core."): tuple(alias.name for alias in node.names)
        for node in imports if node.module and node.module.startswith("qalam_core.")
    }  # fmt: skip
    assert seen == vars(qalam_core)["_MODULES"]


def test_dir_lists_the_names() -> None:
    assert set(qalam_core.__all__) <= set(dir(qalam_core))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'qalam_core' has no attribute 'bulid'"):
        vars(qalam_core)["__getattr__"]("bulid")
    assert not hasattr(qalam_core, "bulid")


def test_the_version_is_the_installed_one() -> None:
    assert qalam_core.__version__ == metadata.version("al-qalam")


def test_the_import_is_light(processes: None) -> None:
    script = (
        "import json, sys; before = set(sys.modules); import qalam_core; dir(qalam_core)\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    imported = json.loads(ran.stdout)
    assert [name for name in imported if name.startswith("qalam_core")] == ["qalam_core"]
    assert not {name.partition(".")[0] for name in imported} & set(HEAVY)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documentation_uses_exported_names_only(document: Path) -> None:
    for block in PYTHON_BLOCK.findall(document.read_text(encoding="utf-8")):
        assert set(_used(block)) <= {"qalam_core", *(f"qalam_core.{name}" for name in qalam_core.__all__)}


def _used(block: str) -> Iterator[str]:
    """The names of this project that a block of Python uses, with their module."""
    try:
        tree = ast.parse(block)
    except SyntaxError:  # a shortened excerpt of a package
        assert "import " not in block, block
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = [f"{node.value.id}.{node.attr}"]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] in ("qalam_core", "al_qalam", "flows", "tasks"))


def test_a_name_that_is_not_exported_is_found_in_documentation() -> None:
    block = "import json\nimport qalam_core\nfrom qalam_core import Store\nfrom qalam_core.store import Store\n"
    found = list(_used(block + "qalam_core.plan(1)\nstore.find()\n"))
    assert found == ["qalam_core", "qalam_core.Store", "qalam_core.store.Store", "qalam_core.plan"]
