"""The code files that every package contains, and the releases whose code is accepted when reading one."""

from __future__ import annotations

import json
from pathlib import Path

from qalam_core.files import sha256_bytes
from qalam_core.package.statistics import PREAMBLE

CODE = ("__init__.py", "__main__.py", "architecture.py", "codings.py", "data_reader.py", "loader.py", "model.py",
        "numpy_model.py", "rows.py", "tokenizer.py", "weights_reader.py")  # fmt: skip
"""Names of the code files in a package."""

RELEASES = Path(__file__).with_name("releases.json")
"""release -> file -> sha256 of the code in its packages; `make release` adds an entry."""


def code_files() -> dict[str, bytes]:
    """Name -> content of this release's code files, with the marks that keep formatters and linters away."""
    here = Path(__file__).parent
    paths = {name: here.parent / name if name == "model.py" else here / "runtime" / name for name in CODE}
    return {name: PREAMBLE.encode() + path.read_bytes() for name, path in paths.items()}


def code_digests() -> dict[str, str]:
    """sha256 of each code file; an exported package depends on them as on its weights."""
    return {name: sha256_bytes(content) for name, content in code_files().items()}


def changed_code(found: dict[str, str]) -> str | None:
    """Given all digests, a code file that differs from the most similar release; None if all belong to one release."""
    known = [code_digests(), *json.loads(RELEASES.read_text(encoding="utf-8")).values()]
    changed: list[list[str]] = [[name for name in found if release.get(name) != found[name]] for release in known]
    nearest = min(changed, key=len)
    return nearest[0] if nearest else None
