"""Records of JSON: the lists in a value as `records` names them, the field of the text, and what to say of others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from qalam_core.errors import CorpusError


def parsed(text: str, field: str = "", records: str = "") -> Any:
    """A JSON value, perhaps behind a byte order mark, as files that were joined have it between them.

    Raises ValueError and RecursionError. A key on the way to the text may not be there twice: one text would be lost.
    """
    keys = {*field.split("."), field, *records.split("."), records} - {""}

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            names = [name for name, _ in pairs if "*" in keys or name in keys]
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"the key {twice[0][:40]!r} is there twice")
        return value

    return json.loads(text.removeprefix("\ufeff"), object_pairs_hook=once if keys else None)


def picked(record: Any, field: str) -> Any:
    """The value of a field, as "a.b" when it is nested; the record itself for "". Raises KeyError."""
    if not field:
        return record
    if isinstance(record, dict):
        if field in record:
            return record[field]
        for dot in re.finditer(r"\.", field):  # the names may have dots themselves
            outer = field[: dot.start()]
            if outer in record:
                return None if record[outer] is None else picked(record[outer], field[dot.end() :])
    raise KeyError(field)


def is_text_or_null(record: Any, field: str) -> bool:
    """Whether a record has the field, with what can be its text."""
    try:
        return isinstance(picked(record, field), str | None)
    except KeyError:
        return False


def every_list(value: Any, depth: int = 4) -> dict[str, list[Any]]:
    """Every list of records in a JSON value, by its path as `records` names it."""
    found = {"": value} if isinstance(value, list) else {}
    if not depth or not isinstance(value, list | dict):
        return found
    children = list(value.values()) if isinstance(value, dict) else value
    inner = [every_list(child, depth - 1) for child in children if isinstance(child, list | dict)]
    if isinstance(value, dict):
        keys = [key for key, child in value.items() if isinstance(child, list | dict)]
        for key, lists in zip(keys, inner, strict=True):
            if key and "." not in key and key != "*":
                found |= {_dotted(key, path): records for path, records in lists.items()}
    if 1 < len(inner) == len(children):  # a path with * has to be there in each of them
        for path in inner[0]:
            if all(path in lists for lists in inner):
                found[_dotted("*", path)] = [record for lists in inner for record in lists[path]]
        if isinstance(value, dict):  # where what is no list is a record itself
            parts = (child if isinstance(child, list) else [child] for child in children)
            found.setdefault("*", [record for part in parts for record in part])
    return found


def _dotted(key: str, path: str) -> str:
    return f"{key}.{path}" if path else key


def records_at(value: Any, keys: str, field: str, path: str, where: str = "the top") -> Iterator[list[Any]]:
    """The lists of records at dotted `keys` of a JSON value, where * stands for each key of an object or list.

    What is no list at a * in the end is a record itself, as in an object of records. So is the object at the end of
    other keys, if no list is in it, or if its `field` is text and no list in it has records with that field.
    """
    if not keys:
        if isinstance(value, list):
            yield value
        elif _is_record(value, field):
            yield [value]
        else:
            raise CorpusError(f"{path}: {where} is not a list of records ({fields_of(value)}); {_way(value, field)}")
        return
    key, _, rest = keys.partition(".")
    if key == "*" and isinstance(value, dict | list):
        for name, each in value.items() if isinstance(value, dict) else enumerate(value, 1):
            yield from records_at(each if rest or isinstance(each, list) else [each], rest, field, path, repr(name))
    elif isinstance(value, dict) and (keys in value or key in value):
        key, rest = (keys, "") if keys in value else (key, rest)  # a key that has dots itself
        yield from records_at(value[key], rest, field, path, repr(key))
    else:
        raise CorpusError(f"{path}: {where} has no key {key!r} ({fields_of(value)}); correct records")


def _is_record(value: Any, field: str) -> bool:
    lists = every_list(value)
    if not isinstance(value, dict) or not lists:
        return isinstance(value, dict)
    return is_text_or_null(value, field) and not any(_texts(lists, field).values())


def _texts(lists: Mapping[str, Sequence[Any]], field: str) -> dict[str, int]:
    """How many records of each list have text in the field."""

    def has_text(record: Any) -> bool:
        return is_text_or_null(record, field) and picked(record, field) is not None

    return {keys: sum(map(has_text, records)) for keys, records in lists.items()}


def _way(value: Any, field: str) -> str:
    lists = every_list(value)
    texts = _texts(lists, field)
    if texts:
        likely = max(texts, key=lambda keys: (texts[keys], -keys.count("*"), len(str(lists[keys]))))
        if texts[likely] or len(str(lists[likely])) > len(str(value)) // 10:
            return f"set records = {json.dumps(likely, ensure_ascii=False)} on its source"
    return "convert it to a list of records, or to one record per line (suffix .jsonl)"


def kind_of(value: object) -> str:
    """What a JSON value is, for a message."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def fields_of(value: object) -> str:
    """What a record has instead, for a message."""
    return listed(_paths(value)) if isinstance(value, dict) else f"it is {kind_of(value)}"


def _paths(record: Mapping[Any, Any], depth: int = 3) -> list[str]:
    """The fields of a record as `text` names them."""
    found = list[str]()
    for key, value in islice(record.items(), 100):
        nested = _paths(value, depth - 1) if isinstance(value, dict) and depth > 1 else []
        found += [f"{key}.{inner}" for inner in nested] or [str(key)]
    return found


def listed(names: Sequence[str]) -> str:
    """The names of fields or columns, for a message."""
    shown = ", ".join(name[:40] for name in names[:12])
    return f"there are: {shown}{', ...' if len(names) > 12 else ''}" if names else "there are none"
