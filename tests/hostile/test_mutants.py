"""A bounded share of `python -m tests.mutants`, and the mistakes that it found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants import FILES, WIDTHS, check_weights, run, weights_texts


@pytest.mark.parametrize("name", FILES)
def test_mutants_of_a_data_file_are_read_as_python_does_or_refused(name: str) -> None:
    accepted = run(name, 150, seed=1)
    assert 0 < accepted < 150


def test_mutants_of_weights_are_read_as_python_does_or_refused() -> None:
    assert 0 < run("weights.py", 100, seed=1) < 100


@pytest.mark.parametrize("width", WIDTHS)
def test_padding_in_place_of_a_rows_last_characters_is_refused(tmp_path: Path, width: int) -> None:
    for dtype, text in weights_texts(width).items():
        assert check_weights(tmp_path, width, text), dtype
        if dtype == "q8":
            continue
        lines = text.split(b"\n")
        rows = [number for number, line in enumerate(lines) if line.endswith((b'",', b'"),'))]
        for row in (rows[0], rows[-1]):
            body, quote, end = lines[row].rpartition(b'"')
            for wrong in (body[:-1] + b"=", body[:-2] + b"==", body[:-3] + b"===", body[:-2] + b"=A", body + b"="):
                if wrong != body:
                    changed = [*lines[:row], wrong + quote + end, *lines[row + 1 :]]
                    assert not check_weights(tmp_path, width, b"\n".join(changed)), (dtype, wrong[-8:])
