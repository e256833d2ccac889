"""The code that every package carries, and which releases' code is accepted when a package is read.
Gives file names, their bytes and digests. It does not know weights or vocabularies.
"""

from __future__ import annotations

import json
from pathlib import Path

from qalam_core.files import sha256_bytes
from qalam_core.package.runtime.data_reader import FORMAT

__all__ = ["CODE", "FORMAT", "RELEASES", "changed_code", "code_digests", "code_files"]

CODE = ("__init__.py", "__main__.py", "architecture.py", "codings.py", "data_reader.py", "loader.py", "model.py",
        "numpy_model.py", "rows.py", "tokenizer.py", "weights_reader.py")  # fmt: skip
"""Names of the code files in a package."""

RELEASES = Path(__file__).with_name("releases.json")
"""release -> file -> sha256 of the code that its packages carry; `make release` adds one."""


def code_files() -> dict[str, bytes]:
    """Name -> content of the code files, as this release writes them."""
    here = Path(__file__).parent
    return {name: (here.parent / name if name == "model.py" else here / "runtime" / name).read_bytes() for name in CODE}


def code_digests() -> dict[str, str]:
    """sha256 of each of those files: an exported package depends on them as on its weights."""
    return {name: sha256_bytes(content) for name, content in code_files().items()}


def changed_code(found: dict[str, str]) -> str | None:
    """A code file whose digest belongs to no known release, given all digests; None when they are one release's."""
    known = [code_digests(), *json.loads(RELEASES.read_text(encoding="utf-8")).values()]
    if found in known:
        return None
    nearest = min(known, key=lambda release: sum(release.get(name) != found[name] for name in found))
    return next(name for name in found if nearest.get(name) != found[name])
