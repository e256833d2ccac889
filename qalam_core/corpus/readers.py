"""Readers: one source file of any format -> one Arrow file with a row per document, as read, in bounded memory."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from qalam_core.corpus.lines import reading, split
from qalam_core.corpus.records import parsed, records_at
from qalam_core.corpus.sources import SourceFile, copied, current_digest, data_files
from qalam_core.corpus.tables import read_arrow, read_csv, read_parquet
from qalam_core.corpus.writer import MAX_CHARS, IngestFacts, Writer
from qalam_core.display import printable
from qalam_core.errors import CorpusError
from qalam_core.progress import Progress, no_progress

log = logging.getLogger(__name__)

DOCUMENTS = "documents.arrow"

MAX_JSON = 512 << 20  # bytes of one .json file, which is parsed at once


def ingest(file: SourceFile, out: Path, progress: Progress = no_progress) -> IngestFacts:
    """Read one file into `out`/documents.arrow, in its order. Progress is in bytes of the file. Raises CorpusError."""
    out.mkdir(parents=True, exist_ok=True)
    with copied(file, out) as file:
        return _ingest(file, out, progress)


def _ingest(file: SourceFile, out: Path, progress: Progress) -> IngestFacts:
    with closing(Writer(out / DOCUMENTS, file, progress)) as writer:
        if file.size or file.hub:
            _READERS[file.settings.format](writer)
        writer.flush()
    # a piece of a file may hold none
    writer.counts["passed_over"] = int(not writer.counts["documents"] and file.piece is None)
    facts = IngestFacts(**{name: writer.counts[name] for name in IngestFacts.model_fields})
    if facts.passed_over:
        why = [f"in {facts.skipped_null} records {file.settings.text!r} is null"] if facts.skipped_null else []
        why += [f"{facts.skipped} bad records were skipped"] if facts.skipped else []
        problem = f"{file.path}: holds no documents" + (f" ({', '.join(why)})" if why else "")
        if not file.settings.found:
            raise CorpusError(f"{problem}; remove it from the sources, or fill it")
        log.warning("%s; it is passed over", printable(problem))
    # Its digest names the artifact: text that changed since then must not be kept under it.
    with reading(file):
        same = current_digest(file) == file.digest
    if not same:
        raise CorpusError(
            f"{file.path}: changed while it was read; run again when nothing writes to it, or with --verify"
        )
    progress(file.size, file.size)
    return facts


def _read_text(writer: Writer) -> None:
    unit = writer.file.settings.unit

    def add(document: str, cut: bool = False) -> None:
        if "\0" in document:  # only where bad records are skipped; else it was refused before
            writer.counts["skipped"] += 1
        elif document.strip():
            writer.add(document, cut)

    if unit == "line":
        for line in writer.lines():
            add(line)
        return

    # Lines are gathered until a blank one, or the end of the file; past MAX_CHARS they are no longer kept.
    gathered: list[str] = []
    chars, cut = 0, False

    def close() -> None:
        nonlocal chars, cut
        add("\n".join(gathered), cut)
        gathered.clear()
        chars, cut = 0, False

    for text, head in writer.input.blocks():
        if head:
            gathered.append(head.decode("utf-8", "ignore"))
            chars, cut = MAX_CHARS, True
        for line in split(text):
            if unit == "paragraph" and not line.strip():
                close()
            elif chars < MAX_CHARS:
                gathered.append(line)
                chars += len(line) + 1
            else:
                cut = cut or bool(line.strip())
    close()


def _read_jsonl(writer: Writer) -> None:
    first = writer.file.piece.first_line if writer.file.piece else 1
    for number, line in enumerate(writer.lines(), first):
        if not line.strip():
            continue
        place = f"{writer.path}:{number}"
        try:
            record = parsed(line, writer.field)
        except (ValueError, RecursionError) as error:
            problem = f"{place}: {_not_json(error)}"
            if line.strip() in ("[", "{") and not writer.holds_documents:
                raise CorpusError(
                    f'{problem}; for one value over many lines set format = "json" on its source'
                ) from None
            writer.bad(problem, "correct or remove it")
        else:
            writer.add_record(record, place)


def _read_json(writer: Writer) -> None:
    content, start, path = bytearray(), 0, writer.path
    for offset, chunk in writer.input.text_chunks():
        start = start or offset
        content += chunk
        if len(content) > MAX_JSON:
            raise CorpusError(
                f"{path}: over {MAX_JSON >> 20} MB, and .json is parsed at once; convert it to JSON Lines (one record "
                "per line, suffix .jsonl), which streams"
            )
    text = writer.input.decode(content, start)
    del content
    if not text.strip():
        return
    try:
        value = parsed(text, writer.field, writer.file.settings.records)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{path}: {_not_json(error)}; {_cure(text, error)}") from None
    del text
    number = 0
    for records in records_at(value, writer.file.settings.records, writer.field, path):
        for number, record in enumerate(records, number + 1):  # noqa: B020  numbered over all lists
            writer.add_record(record, f"{path}: record {number}")


def _cure(text: str, error: Exception) -> str:
    """What to do about a text that is not one JSON value."""
    if not isinstance(error, json.JSONDecodeError) or error.msg != "Extra data":
        return "correct it"
    first = text[: error.pos].strip().removeprefix("\ufeff")
    if "\n" in first or first.startswith("["):  # another format could not read these either
        return 'write one record per line, as {"text": "..."}, with the suffix .jsonl; of objects `jq -c .` does'
    return 'for one record per line set format = "jsonl" on its source'


def _not_json(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        where = f"line {error.lineno} column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        return f"not JSON at {where} ({error.msg})"
    return f"not JSON that can be read ({error})"  # numbers of thousands of digits, thousands of nested brackets


def _read_hub(writer: Writer) -> None:
    # The library's cache is deleted with this folder; offline it obeys HF_HUB_OFFLINE.
    with tempfile.TemporaryDirectory(dir=writer.folder) as cache:
        for number, record in enumerate(_hub_records(writer.file, cache), 1):
            writer.add_record(record, f"{writer.path}: record {number}")


def _hub_records(file: SourceFile, cache: str) -> Iterator[Any]:
    import datasets  # slow to import, and most corpora are plain files

    source = file.hub
    assert source is not None
    files = data_files(source) or None
    try:
        rows = datasets.load_dataset(
            file.path.removeprefix("hf:"), source.config or None, split=source.split, data_files=files,
            revision=source.revision or None, streaming=True, cache_dir=cache,
        )  # fmt: skip
        for name in (source.text, source.text.partition(".")[0]):
            if rows.column_names and name in rows.column_names:
                rows = rows.select_columns([name])  # leaves images and sound undecoded
                break
        yield from rows
    except Exception as error:  # builders raise many types; in any case the data set cannot be read
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise CorpusError(
            f"{file.path}: cannot be read ({reason}); check name, config, split and revision, and the network unless "
            "HF_HUB_OFFLINE is set"
        ) from None


_READERS: dict[str, Callable[[Writer], None]] = {
    "text": _read_text, "jsonl": _read_jsonl, "json": _read_json, "csv": read_csv, "parquet": read_parquet,
    "arrow": read_arrow, "hf": _read_hub,
}  # fmt: skip
