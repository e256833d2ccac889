"""Writes a package as one HTML file, in which it runs in a browser without a network."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import tempfile
from importlib.resources import files
from pathlib import Path
from string import Template

from qalam_core.errors import PackageError
from qalam_core.files import replace_file
from qalam_core.package.interop.storage import convert
from qalam_core.package.read import read
from qalam_core.package.runtime.weights_reader import weight_files

SCRIPTS = ("reader.js", "model.js", "screen.js")
"""The page's script, in order; they share one scope. `checks.js` is for readers of packages from others."""

MOST_BYTES = 500_000_000
"""Of a package's files in a page: browsers have limits, and all of it is in their memory more than once."""


def export_page(folder: Path, out: Path, dtype: str | None = None) -> None:
    """Write the package in `folder` to the file `out`, which must not exist, stored as `dtype`.

    By default it stays as it is stored, but f32 becomes i8. The same package gives the same bytes.
    """
    if out.exists():
        raise PackageError(f"{out}: exists; choose another name or delete it")
    stored = read(folder).manifest["dtype"]
    wanted = dtype or ("i8" if stored == "f32" else stored)
    with tempfile.TemporaryDirectory() as scratch:
        if wanted != stored:
            convert(folder, Path(scratch) / "package", wanted)
            folder = Path(scratch) / "package"
        paths = [folder / "config.py", folder / "vocab.py", *weight_files(folder)]
        if (size := sum(path.stat().st_size for path in paths)) > MOST_BYTES:
            raise PackageError(f"{out}: {size:,} bytes, and a page has at most {MOST_BYTES:,}; give --dtype i8")
        texts = {path.name: path.read_bytes().decode() for path in paths}
        title = _title((folder / "MODEL_CARD.md").read_text(encoding="utf-8"))
    try:
        replace_file(out, page(texts, title).encode())
    except OSError as error:
        raise PackageError(f"{out}: cannot be written ({error.strerror}); name another file, or free space") from None


def page(texts: dict[str, str], title: str) -> str:
    """The page with these files of a package, by name.

    The files are JSON strings in scripts that are not executed; without "<" nothing in them can end such a script.
    """
    style, script = source("base.css"), "".join(map(source, SCRIPTS))
    blocks = [f'<script type="application/json" id="{name}">{_json(text)}</script>' for name, text in texts.items()]
    return Template(source("page.html")).substitute(
        title=html.escape(title), style=style, style_digest=digest(style), script=script,
        script_digest=digest(script), files="\n".join(blocks),
    )  # fmt: skip


def source(name: str) -> str:
    """A file of the page's own source."""
    return (files(__package__) / "browser" / name).read_text(encoding="utf-8")


def _json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("<", "\\u003c")


def digest(text: str) -> str:
    """A digest as a Content-Security-Policy names it: nothing else than this text is executed, or styles the page."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _title(card: str) -> str:
    """The first heading of a card."""
    headings = [line[2:].strip() for line in card.splitlines() if line.startswith("# ")]
    return headings[0] if headings else "Al-Qalam"
