"""Detection: a bounded sample of the files of a source -> the keys with which the source can be read, and its size.

Nothing is executed or downloaded, and the same files give the same answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from qalam_core.corpus.kinds import ARABIC, MARKS, NAMES, Choice, File, arabic_letters, look, most_arabic, take
from qalam_core.corpus.sources import expand, parts
from qalam_core.corpus.tables import NUMBERED
from qalam_core.errors import CorpusError
from qalam_core.recipe import Source

FILES = 20  # files of a source that are looked at, spread over them...
TOTAL = 20 << 20  # ...and bytes of all of them
ENOUGH = 30  # documents that can be divided into training, validation and test text


class Detected(NamedTuple):
    """A source that can be read, what was seen of it in one line, and estimates of what it holds."""

    source: Source
    what: str
    bytes: int  # UTF-8, of the documents' text
    documents: int
    shortest: int  # characters; only one document in twenty is shorter
    repair: bool  # some documents are Arabic only once damage by a wrong encoding is repaired


def detect(source: Source) -> Detected:
    """How the files of `source` can be read. Raises CorpusError where there is no file, or no Arabic text."""
    paths = expand(source)[0]
    paths = [path for path in paths if parts(path)[1]] or paths  # a build passes others over
    count = min(len(paths), FILES)
    read = [look(paths[place * len(paths) // count], TOTAL // count) for place in range(count)]
    found = [file for file in read if file.letters]
    if not found:
        fields = ", ".join(next((file.fields for file in read if file.fields), [])[:12])
        seen = f" (its fields: {fields})" if fields else ""
        raise CorpusError(f"{source.path}: no Arabic text was found{seen}; name files that hold some")
    for file in read:
        if not file.letters and file.format not in ("text", found[0].format) and file.size:
            raise CorpusError(
                f"{file.path}: holds no Arabic text, and is no plain text that filters could reject; remove it, or "
                f"name the other files by a glob"
            )
    _agree(found)
    keys = _common(source, found)
    if any(file.format == "text" for file in found):
        keys |= _unit([file for file in found if file.format == "text"], len(paths))
        for file in found:
            file.texts = file.units.get(keys.get("unit", "line"), file.texts)
    sampled = sum(file.share * file.size for file in read)
    scale = sum(path.stat().st_size for path in paths) / max(sampled, 1)
    texts = [text for file in found for text in file.texts]
    lengths = sorted(len(MARKS.sub("", text).strip()) for text in texts)
    detected = Source.model_validate({**source.model_dump(), **keys})
    return Detected(
        detected, _told(detected, found, len(paths)), int(scale * sum(file.text_bytes for file in found)),
        max(1, int(scale * len(texts))), lengths[len(lengths) // 20],
        any(arabic_letters(text) and not ARABIC.search(text) for text in texts),
    )  # fmt: skip


def _told(source: Source, found: Sequence[File], files: int) -> str:
    """What was detected, as one line."""
    kinds = " and ".join(sorted({NAMES[file.format] for file in found}))
    where = f"{files} files of {kinds}" if files > 1 else kinds
    more = [f"encoding {source.encoding}"] if source.encoding != "utf-8" else []
    if source.encoding_errors == "replace":
        more.append("damaged characters are replaced")
    if any(file.format != "text" for file in found):
        if NUMBERED.fullmatch(source.text):
            more.append(f"text in column {source.text[1:]}, and no line names the columns")
        else:
            more.append(f"text in {source.text!r}" if source.text else "records are strings")
        more += [f"records in {source.records!r}"] if source.records else []
        more += [f"cells end at {source.delimiter!r}"] if source.delimiter else []
    more += ["bad records are skipped"] if source.bad_records == "skip" else []
    if any(file.format == "text" for file in found):
        wrapped = ", as lines are wrapped" if source.unit != "line" else ""
        more.append(f"a document is a {source.unit}{wrapped}")
    return f"{where}: {', '.join(more)}"


def _agree(found: Sequence[File]) -> None:
    """Let files of records, where they can, have the field that has the most Arabic in all of them.

    A file that is one record without that field is a bad record.
    """
    total = Counter[Choice]()
    for file in found:
        total.update(file.choices)
    for file in found:
        chosen = most_arabic(total) if total else ("", "")
        if chosen in file.choices or (not chosen[0] and file.single):
            take(file, chosen)


def _common(source: Source, found: Sequence[File]) -> dict[str, str]:
    """The keys that all files of a source need. Raises CorpusError where two need different ones."""
    keys: dict[str, str] = {}
    first: dict[str, Path] = {}
    for file in found:
        for key, value in file.keys.items():
            if keys.setdefault(key, value) == value:
                first.setdefault(key, file.path)
            elif key in ("bad_records", "encoding_errors"):
                keys[key] = max(value, keys[key])  # "replace" and "skip" are after "refuse"
            else:
                raise CorpusError(
                    f"{source.path}: files of different kinds: {key} is {keys[key]!r} for {first[key].name} and "
                    f"{value!r} for {file.path.name}; put them into different folders, and name each with --corpus"
                )
    return keys


def _unit(found: Sequence[File], files: int) -> dict[str, str]:
    """The unit of plain text: paragraphs or files where lines are wrapped, and there are enough of them."""
    wrapped = sum(file.size for file in found if file.wrapped)
    if 2 * wrapped <= sum(file.size for file in found):
        return {}
    paragraphs = [text for file in found for text in file.units["paragraph"]]
    if len(paragraphs) >= max(ENOUGH, 2 * len(found)):
        return {"unit": "paragraph"}
    return {"unit": "file"} if files >= ENOUGH else {}
