"""Accepts the edits of a package: new digests in the manifest, and a line in the card."""

from __future__ import annotations

import re
from pathlib import Path

from qalam_core.errors import PackageError
from qalam_core.files import sha256_bytes
from qalam_core.package.comments import restated
from qalam_core.package.editing.lines import save
from qalam_core.package.read import Package, changes, read
from qalam_core.package.runtime.weights_reader import HIDDEN, weight_files
from qalam_core.package.statistics import Measured, knowledge_text, statistics
from qalam_core.package.write import json_bytes, rows_json, tensor_digest, with_newline

HEADING = "## Edited since export"
_EXPLANATION = "Figures above were measured before these edits."
_NUMBERED = re.compile(r"[0-9]+\. ")


def seal(folder: Path, note: str) -> list[str]:
    """Make the current content the reference of `verify`; -> the changes since the last one.

    Updates the digests in manifest.json and rows.json, the statistics in knowledge_map.py, the statistics and words in
    the comments, and tokenizer.json, and adds a numbered line with the note and the changes to MODEL_CARD.md. The
    provenance in manifest.json, which is written last, counts the edits, because the recipe alone no longer determines
    the weights.
    """
    folder = Path(folder)
    if not note.strip() or re.search(f"[{HIDDEN}]", note):
        raise PackageError("note: describe in one line of plain text what was edited, and why")
    package = read(folder)
    changed = changes(package)
    if not changed:
        raise PackageError(f"{folder}: as exported; there is nothing to seal")
    measured = {name: statistics(tensor) for name, tensor in package.weights.items()}
    edits = package.manifest["provenance"].get("edits", "0")
    count = 1 + (int(edits) if re.fullmatch("[0-9]{1,9}", edits) else 0)
    contents = {
        **_comments(package, measured),
        "knowledge_map.py": knowledge_text(measured, package.weights["embedding.weight"], package.vocabulary).encode(),
        "rows.json": rows_json(package.weights),
        "tokenizer.json": package.tokenizer_json.encode(),
        "MODEL_CARD.md": _card(folder, count, note.strip(), changed).encode(),
    }
    manifest = {
        **package.manifest,
        "files": {
            name: sha256_bytes(contents.get(name) or (folder / name).read_bytes()) for name in package.manifest["files"]
        },
        "provenance": {**package.manifest["provenance"], "edits": str(count)},
        "tensors": {name: tensor_digest(tensor) for name, tensor in package.weights.items()},
    }
    save(folder, {**contents, "manifest.json": json_bytes(manifest)})
    return changed


def edits(card: str) -> tuple[str, ...]:
    """The lines that `seal` has added to a card since the export: number, note, changes."""
    _, _, below = card.partition(f"\n{HEADING}\n")
    return tuple(line for line in below.splitlines() if _NUMBERED.match(line))


def _comments(package: Package, measured: Measured) -> dict[str, bytes]:
    """The weights files whose comments as exported are outdated, with new ones."""
    contents = {}
    for path in weight_files(package.path):
        raw = path.read_bytes()
        text = restated(raw, measured, package.vocabulary.words)
        if text != raw:
            contents[path.name] = text
    return contents


def _card(folder: Path, count: int, note: str, changes: list[str]) -> str:
    """The card with another numbered line below its heading, which is added first if missing."""
    lines = with_newline((folder / "MODEL_CARD.md").read_text(encoding="utf-8")).split("\n")[:-1]
    listed = "; ".join(change.replace(" changed since export", " changed") for change in changes)
    if HEADING not in lines:
        lines += ["", HEADING, "", _EXPLANATION, ""]
    below = range(lines.index(HEADING), len(lines))
    last = max((at for at in below if _NUMBERED.match(lines[at])), default=len(lines) - 1)
    lines.insert(last + 1, f"{count}. {note} ({listed})")
    return "\n".join(lines) + "\n"
