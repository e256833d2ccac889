"""JSON from files: one encoding, one meaning."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest

from qalam_core.files import json_object, replace_file, replacing

TEXT = '{"a": "قلم", "b": [1, {"c": null}]}'


def test_objects_are_parsed_from_text_and_bytes() -> None:
    assert json_object(TEXT) == json_object(TEXT.encode()) == json.loads(TEXT)


@pytest.mark.parametrize(
    "content",
    [
        codecs.BOM_UTF8 + TEXT.encode(),
        TEXT.encode("utf-16"),
        TEXT.encode("utf-32-le"),
        '{"\ud800": 1}'.encode("utf-8", "surrogatepass"),
        b'{"a": "\xff"}',
        b"",
        b"[]",
        b'{"a": 1, "a": 1}',
        b'{"a": {"b": 1, "b": 2}}',
        b"[" * 100_000,
        rb'{"\ud800": 1}',
        rb'{"a": ["x", {"b": "\uDFFF\ud800"}]}',
    ],
)
def test_anything_but_an_object_in_utf_8_with_distinct_keys_is_refused(content: bytes) -> None:
    faults = "not valid JSON|must be a JSON object|holds a key twice.*|.*surrogate pair"
    with pytest.raises(ValueError, match=f"^({faults})$"):
        json_object(content)


def test_escaped_pairs_of_surrogates_are_text() -> None:
    assert json_object(rb'{"a": "\ud83d\ude00 \\ud800"}') == {"a": "\U0001f600 \\ud800"}


def test_two_writers_with_equal_process_ids_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In two containers that share a folder."""
    monkeypatch.setattr("os.getpid", lambda: 7)
    file = tmp_path / "file"
    with replacing(file) as one:
        one.write_bytes(b"one")
        replace_file(file, b"two")
        assert one.read_bytes() == b"one"
    assert file.read_bytes() == b"one"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_is_replaced_or_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "file"
    replace_file(file, b"one")

    def fail() -> None:
        with replacing(file) as temporary:
            temporary.write_bytes(b"tw")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert file.read_bytes() == b"one"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
