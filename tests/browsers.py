"""Runs the scripts of a page, and pages, in headless Chromium and in node, where they are installed."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NODE = shutil.which("node")
ENGINES = [name for name, path in (("chromium", CHROMIUM), ("node", NODE)) if path]
_FOUND = "document.documentElement.dataset.found = JSON.stringify({})"


def evaluate(engine: str, folder: Path, scripts: Sequence[str], expression: str, data: Any = None) -> Any:
    """The value of an expression of JavaScript after these scripts, with `data`, in an empty page or in node."""
    text = "\n".join((*scripts, f"const data = {_literal(data)};"))
    if engine == "node":
        (folder / "script.js").write_text(f"{text}\nconsole.log(JSON.stringify({expression}));", encoding="utf-8")
        done = subprocess.run(
            [str(NODE), folder / "script.js"], capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
    page = f"<!doctype html><meta charset='utf-8'><script>{text}\n{_FOUND.format(expression)}</script>"
    (folder / "script.html").write_text(page, encoding="utf-8")
    return found(browse(folder / "script.html", folder).stdout)


def probe(page: Path, folder: Path, script: str, *options: str) -> Any:
    """What a script gives that is added to the end of a page, and allowed by the page's policy; it calls `found`."""
    script = f"const found = (value) => {{ {_FOUND.format('value')} }};\n{script}"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = page.read_text(encoding="utf-8")
    assert text.count("script-src 'sha256-") == text.count("</body>") == 1
    text = text.replace("script-src '", f"script-src 'sha256-{digest}' '")
    probed = folder / "probed.html"
    probed.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    done = browse(probed, folder, *options)
    assert "CONSOLE" not in done.stderr, done.stderr
    return found(done.stdout)


def browse(page: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page; stdout is its document after loading, stderr has what it wrote to the console."""
    return subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
         "--enable-logging=stderr", *options, "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip


def found(document: str) -> Any:
    """What a script has put into the document's `data-found`."""
    match = re.search(r'data-found="([^"]*)"', document)
    assert match, document[:2000]
    return json.loads(html.unescape(match[1]))


def _literal(data: Any) -> str:
    return json.dumps(data).replace("<", "\\u003c")
