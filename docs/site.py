"""What a code host does with the pages of this folder and MkDocs does not, for the site; see mkdocs.yml."""

from __future__ import annotations

import posixpath
import re
from typing import Any

_LINK = re.compile(r"\[([^\]\n]+)\]\(((?:\.\./)+[^)\s]*)\)")


def on_page_markdown(markdown: str, *, page: Any, **_: object) -> str:
    """Show links to files outside this folder, which the site does not have, as text; and keep Markdown in <div>."""
    folder = posixpath.dirname(page.file.src_uri)

    def shown(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, found[2]))
        return found[0] if not target.startswith("..") else f"{found[1]} (`{target.removeprefix('../')}`)"

    return _LINK.sub(shown, markdown).replace('<div dir="rtl">', '<div dir="rtl" lang="ar" markdown>')
