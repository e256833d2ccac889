"""The same forty documents in tables and records, and what is read of a source as it was detected."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from qalam_core.corpus.detect import detect
from qalam_core.corpus.readers import DOCUMENTS, ingest
from qalam_core.corpus.sources import resolve
from qalam_core.corpus.splits import read_texts
from qalam_core.recipe import Source
from tests.conftest import sentences

TEXTS = sentences(40)
NUMBERED = list(enumerate(TEXTS))


def dumps(value: object, **options: object) -> str:
    return json.dumps(value, ensure_ascii=False, **options)  # type: ignore[arg-type]


def table(delimiter: str, header: list[str]) -> str:
    """A table whose third column is the text; the second one is Arabic too, and short."""
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(header)
    writer.writerows([number, "خبر", text, number % 2][: len(header)] for number, text in NUMBERED)
    return out.getvalue()


def read_back(source: Source, folder: Path) -> list[str]:
    """Every document of a source as it was detected, in the order of the files."""
    found = list[str]()
    for number, file in enumerate(resolve([detect(source).source])):
        out = folder / f"read-{number}"
        ingest(file, out)
        found += [text for batch in read_texts(out / DOCUMENTS) for text in batch.column("text").to_pylist()]
    return found
