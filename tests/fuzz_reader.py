"""Fuzzes the weights reader, guided by coverage; `make fuzz` runs it for a minute.

Each input is a complete weights.py of a tiny model. Whatever the reader accepts must be what Python makes of it, the
fast path must agree with the strict parser, and nothing but the reader's own refusal may come out.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["qalam_core.package.runtime"]):
    from tests.small_package import FRAGMENTS, check_it_means_what_python_means, tiny_texts


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = folder / "corpus"
        corpus.mkdir()
        for dtype, text in tiny_texts(folder).items():
            assert check_it_means_what_python_means(folder, text)
            (corpus / dtype).write_bytes(text)
        words = folder / "words"  # libFuzzer's dictionary: what to insert besides single bytes
        words.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in FRAGMENTS))
        # texts longer than a few times the seeds find nothing new
        options = [f"-dict={words}", "-max_len=4096", f"-artifact_prefix={Path.cwd()}/", *sys.argv[1:]]
        inputs = [] if any(not option.startswith("-") for option in options) else [str(corpus)]
        atheris.Setup([sys.argv[0], *options, *inputs], lambda text: check_it_means_what_python_means(folder, text))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
