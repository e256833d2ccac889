"""Preparing a corpus: MB of text read per second and peak memory, at several sizes, compared with datatrove.

    python -m benchmarks.bench_corpus [--corpus FILE] [--sizes 30,250,1000] [--check]
    python -m benchmarks.bench_corpus --rules [--corpus FILE] [--check]

FILE is JSON Lines with a field `text`; by default the demo corpus. A corpus of each size is made from its
sentences, recombined at random from a seed, one document in twenty nearly the same as another one, so that there are
duplicates at every size. Each figure is a process of its own. datatrove is measured where it is installed
(`pip install "al-qalam[bench]"`), in one process, with words split at white space: its own tokenizers need downloads.
Targets, on two cores: normalising, exact and near-duplicate removal at 10 MB/s, everything (repair, the web filters,
language identification too) at 4 MB/s, peak memory below 1 GB at every size, and the cost of a MB at the largest size
at most a quarter above that at the smallest, in seconds of processor time.

`--rules` instead compares each rule of the profile `web` with datatrove's filter of the same threshold, with spaCy's
words as FineWeb2 has them: which documents one of both rejects and the other keeps. Target: below 0.5% for each rule.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import itertools
import json
import logging
import math
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc

from benchmarks.texts import texts
from qalam_core.arabic import NORMALISATIONS, normalise_array
from qalam_core.corpus.filtered import filter_documents
from qalam_core.corpus.filters import FilterSettings, first_violation
from qalam_core.corpus.matches import match_documents
from qalam_core.corpus.prepare import FilteredFiles, PrepareSettings, prepare
from qalam_core.corpus.readers import ingest
from qalam_core.corpus.sources import resolve
from qalam_core.corpus.words import words
from qalam_core.filter_profiles import FILTER_PROFILES
from qalam_core.recipe import Corpus, Source

LEAST = {"normalise, exact and near-duplicates": 10.0, "everything": 4.0}  # MB/s
MEMORY = 1000  # MB
DISAGREEMENT = 0.005  # share of the documents, for each rule
STEEPER = 1.25

STANDARD = NORMALISATIONS["standard"]

PARTS: dict[str, dict[str, Any]] = {
    "normalise": {},
    "normalise, exact and near-duplicates": {"filters": "none"},
    "everything": {"filters": "web", "repair": True},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--corpus", type=Path, help="JSON Lines with a field `text`")
    parser.add_argument("--sizes", default="30,250", help="MB of text, one after the other")
    parser.add_argument("--rules", action="store_true", help="compare each rule of `web` with datatrove's instead")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # in a process of its own: one figure
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(measured(arguments.part, arguments.folder)))
        return 0
    if arguments.rules:
        return int(rules_table(arguments.corpus) and arguments.check)
    sizes = [int(size) for size in arguments.sizes.split(",")]
    return int(prepare_table(arguments.corpus, sizes) and arguments.check)


def prepare_table(corpus: Path | None, sizes: list[int]) -> bool:
    """Print the table of preparation; -> whether a target was missed."""
    missed = False
    costs: dict[str, list[float]] = {}  # processor seconds a MB, at each size
    columns = f"{'MB/s':>8}{'cpu s/MB':>10}{'peak MB':>9}{'documents':>11}{'kept':>10}"
    with tempfile.TemporaryDirectory(prefix="qalam-bench-") as root:
        sentences = [sentence for text in texts(corpus) for sentence in split_sentences(text)]
        for size in sizes:
            folder = Path(root, str(size))
            folder.mkdir()
            documents = made(sentences, size * 1_000_000, folder / "corpus.jsonl")
            print(f"\n{size} MB, {documents:,} documents\n{'':<40}{columns}")
            for part in ("ingest", *PARTS):
                found = in_process(part, folder)
                rate, cost = found["bytes"] / found["seconds"] / 1e6, found["cpu"] / found["bytes"] * 1e6
                costs.setdefault(part, []).append(cost)
                missed |= rate < LEAST.get(part, 0) or found["peak"] > MEMORY
                kept = f"{found['kept']:,}" if "kept" in found else ""
                print(f"{part:<40}{rate:>8.1f}{cost:>10.4f}{found['peak']:>9.0f}{documents:>11,}{kept:>10}", flush=True)
            if size == sizes[0]:
                _peer(folder)
            (folder / "corpus.jsonl").unlink()
            (folder / "documents.arrow").unlink()
    for part, found_costs in costs.items():
        steeper = found_costs[-1] / found_costs[0]
        if len(found_costs) > 1:
            print(f"a MB at {sizes[-1]} MB costs {steeper:.2f} of what it costs at {sizes[0]} MB: {part}")
        missed |= part in LEAST and steeper > STEEPER
    return missed


def in_process(part: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.bench_corpus", "--part", part, "--folder", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measured(part: str, folder: Path) -> dict[str, float]:
    """Do one part on what is in `folder`; bytes of text as read, seconds, and the process's peak memory in MB."""
    found: dict[str, float] = {}
    file = folder / "documents.arrow"
    since, spent = time.perf_counter(), time.process_time()
    if part == "ingest":
        [source] = resolve([Source(path=str(folder / "corpus.jsonl"))])
        since, spent = time.perf_counter(), time.process_time()
        ingest(source, folder)
    elif part == "normalise":
        _normalise(file)
    elif part == "datatrove":
        found["kept"] = _datatrove(folder)
    else:
        corpus = Corpus(sources=(Source(path="x"),), **PARTS[part])
        with tempfile.TemporaryDirectory(dir=folder) as out:
            settings, filtered = FilterSettings.of(corpus, corpus.filters), Path(out) / "filtered"
            files = [FilteredFiles("x", filtered, filter_documents([file], settings, filtered))]
            matches = Path(out) / "matches"
            match_documents([(filtered, files[0].facts.passed)], 0, 1, matches)
            found["kept"] = prepare(files, [matches], PrepareSettings.of(corpus), settings, Path(out) / "prepared").kept
    found["seconds"], found["cpu"] = time.perf_counter() - since, time.process_time() - spent
    found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found["bytes"] = json.loads((folder / "size.json").read_text())
    return found


def _normalise(file: Path) -> None:
    with ipc.open_file(str(file)) as reader, ThreadPoolExecutor(2) as pool:
        for start in range(0, reader.num_record_batches, 2):
            indices = range(start, min(start + 2, reader.num_record_batches))
            list(pool.map(lambda index: len(normalise_array(reader.get_batch(index)["text"], STANDARD)), indices))


# -- a corpus of any size -------------------------------------------------------------------------


def split_sentences(text: str) -> list[str]:
    parts = (part.strip() for part in re.split(r"(?<=[.؟!:\n])\s+", text))
    return [part for part in parts if 20 <= len(part) <= 1000]


def made(sentences: list[str], size: int, path: Path) -> int:
    """Write `size` bytes of distinct documents, and how many bytes of text they are; -> the number of documents."""
    rng = random.Random(size)
    words = sorted({word for sentence in sentences for word in sentence.split()})
    written = documents = 0
    recent: list[list[str]] = []
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            if recent and not documents % 20:  # nearly one of the last documents
                parts = [*rng.choice(recent), rng.choice(words)]
            else:
                parts = [_varied(sentence, words, rng) for sentence in rng.choices(sentences, k=rng.randint(6, 30))]
                recent = [*recent[-50:], parts]
            text = "".join(part + rng.choice("  \n") for part in parts).strip()
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            written += len(text.encode())
            documents += 1
    (path.parent / "size.json").write_text(str(written))
    return documents


def _varied(sentence: str, words: list[str], rng: random.Random) -> str:
    """A sentence with another word in eight: no two documents share much beyond their sentences' shape."""
    found = sentence.split()
    for _ in range(len(found) // 8 + 1):
        found[int(rng.random() * len(found))] = words[int(rng.random() * len(words))]
    return " ".join(found)


# -- the peer -------------------------------------------------------------------------------------


def _peer(folder: Path) -> None:
    if not importlib.util.find_spec("datatrove"):
        print('datatrove is not installed; pip install "al-qalam[bench]" measures it too')
        return
    found = in_process("datatrove", folder)
    rate, cost = found["bytes"] / found["seconds"] / 1e6, found["cpu"] / found["bytes"] * 1e6
    label = "datatrove: Gopher, FineWeb, MinHash"
    print(f"{label:<40}{rate:>8.1f}{cost:>10.4f}{found['peak']:>9.0f}{'':>11}{found['kept']:>10,}")


def _datatrove(folder: Path) -> int:
    """FineWeb2's rules and MinHash by datatrove's own classes, step after step, in this process."""
    os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
    from datatrove.data import Document
    from datatrove.pipeline.dedup import minhash
    from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.word_tokenizers import WordTokenizer
    from loguru import logger

    from qalam_core.corpus.measures import STOP_WORDS

    logger.remove()
    logging.disable()

    class Whitespace(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            return [text]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [(0, len(text))]

    limits, words = FILTER_PROFILES["web"], Whitespace()
    filters = [
        GopherRepetitionFilter(
            limits["max_duplicate_lines"], 0, 0, 0,
            tuple((n, limits[f"max_top_{n}gram"]) for n in range(2, 5)),
            tuple((n, limits[f"max_duplicate_{n}gram"]) for n in range(5, 11)), language=words,
        ),
        FineWebQualityFilter(
            line_punct_thr=limits["min_line_punctuation"], short_line_thr=999, char_duplicates_ratio=0.1,
            new_line_ratio=limits["max_newlines"], language=words,
        ),
        GopherQualityFilter(
            min_avg_word_length=2, max_avg_word_length=9, max_non_alpha_words_ratio=limits["min_alphabetic"],
            stop_words=list(STOP_WORDS), language=words,
        ),
    ]  # fmt: skip

    def documents() -> Iterator[Document]:
        number = itertools.count()
        with ipc.open_file(str(folder / "documents.arrow")) as reader:
            for index in range(reader.num_record_batches):
                for text in normalise_array(reader.get_batch(index)["text"].cast(pa.large_string()), STANDARD):
                    yield Document(text.as_py(), str(next(number)))

    def kept() -> Iterator[Document]:
        stream = documents()
        for step in filters:
            stream = step.run(stream)
        return stream

    # its xxhash needs an older release of that library than ours
    config = minhash.MinhashConfig(hash_config=HashConfig(hash_fc="sha1"), num_buckets=14, hashes_per_bucket=8)
    with tempfile.TemporaryDirectory(dir=folder) as home:
        passed = list(kept())
        steps = minhash.MinhashDedupSignature(f"{home}/sig", config, language=words)
        steps.run(iter(passed))
        for bucket in range(14):
            minhash.MinhashDedupBuckets(f"{home}/sig", f"{home}/buckets", config=config).run(None, bucket, 14)
        minhash.MinhashDedupCluster(f"{home}/buckets", f"{home}/remove", config=config).run(None, 0, 1)
        return sum(1 for _ in minhash.MinhashDedupFilter(f"{home}/remove").run(iter(passed)))


# -- the rules ------------------------------------------------------------------------------------


def rules_table(corpus: Path | None) -> bool:
    """Print for each rule of `web` what it and datatrove's filter reject; -> whether they disagree too often."""
    array = normalise_array(pa.array(texts(corpus), pa.large_string()), STANDARD)
    found, limits = words(array), FILTER_PROFILES["web"]
    theirs = _datatrove_rules()
    print(f"{len(array):,} documents; after max_words, the rules reject among those that have min_words words")
    print(f"{'rule':<26}{'ours':>8}{'theirs':>8}{'only ours':>11}{'only theirs':>13}{'differ':>9}")
    missed = False
    rejected = {rule: np.zeros(len(array), np.bool_) for rule in theirs}
    for row, text in enumerate(array.to_pylist()):
        for rule, rejects in theirs.items():
            rejected[rule][row] = rejects(text)
    long = ~rejected["min_words"] & (first_violation(array, found, [("min_words", limits["min_words"])]) == "")
    for rule, other in rejected.items():
        own = first_violation(array, found, [(rule, limits[rule])]) == rule
        if rule not in ("min_words", "max_words"):  # in a few words, an n-gram that occurs once is a large share
            own, other = own & long, other & long
        differ = np.mean(own != other)
        missed |= bool(differ >= DISAGREEMENT)
        figures = f"{own.sum():>8,}{other.sum():>8,}{(own & ~other).sum():>11,}{(other & ~own).sum():>13,}"
        print(f"{rule:<26}{figures}{differ:>9.2%}")
    return missed


def _datatrove_rules() -> dict[str, Callable[[str], bool]]:
    """Rule -> whether datatrove's filter with that one threshold rejects a text."""
    os.environ.update(HF_HUB_OFFLINE="1")
    from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
    from datatrove.utils.word_tokenizers import SpaCyTokenizer

    from qalam_core.corpus.measures import STOP_WORDS

    class Once(SpaCyTokenizer):
        """spaCy's words, kept for the next rule of the same text."""

        text, words = "", list[str]()

        def word_tokenize(self, text: str) -> list[str]:
            if text != self.text:
                self.text, self.words = text, super().word_tokenize(text)
            return self.words

    language, limits = Once("ar"), FILTER_PROFILES["web"]

    def quality(**options: Any) -> Any:
        names = inspect.signature(GopherQualityFilter).parameters
        off = {name: None for name in names if name.startswith(("min_", "max_"))}
        return GopherQualityFilter(**{**off, **options}, stop_words=list(STOP_WORDS), language=language)

    def lines(**options: float) -> Any:
        off = {"line_punct_thr": 0, "short_line_thr": 1, "char_duplicates_ratio": 1, "new_line_ratio": math.inf}
        return FineWebQualityFilter(**{**off, **options}, language=language)

    def repetition(**options: Any) -> Any:
        off = {"dup_line_frac": 0, "dup_para_frac": 0, "dup_line_char_frac": 0, "dup_para_char_frac": 0,
               "top_n_grams": (), "dup_n_grams": ()}  # fmt: skip
        return GopherRepetitionFilter(**{**off, **options}, language=language)

    filters = {
        "min_words": quality(min_doc_words=limits["min_words"]),
        "max_words": quality(max_doc_words=limits["max_words"]),
        "min_average_word": quality(min_avg_word_length=limits["min_average_word"]),
        "max_average_word": quality(max_avg_word_length=limits["max_average_word"]),
        "min_alphabetic": quality(max_non_alpha_words_ratio=limits["min_alphabetic"]),
        "min_stop_words": quality(min_stop_words=limits["min_stop_words"]),
        "min_line_punctuation": lines(line_punct_thr=limits["min_line_punctuation"]),
        "max_newlines": lines(new_line_ratio=limits["max_newlines"]),
        "max_duplicate_lines": repetition(dup_line_frac=limits["max_duplicate_lines"]),
        "max_duplicate_line_chars": lines(char_duplicates_ratio=limits["max_duplicate_line_chars"]),
        **{f"max_top_{n}gram": repetition(top_n_grams=((n, limits[f"max_top_{n}gram"]),)) for n in range(2, 5)},
        **{
            f"max_duplicate_{n}gram": repetition(dup_n_grams=((n, limits[f"max_duplicate_{n}gram"]),))
            for n in range(5, 11)
        },
    }
    return {name: partial(_rejects, one) for name, one in filters.items()}


def _rejects(datatroves: Any, text: str) -> bool:
    from datatrove.data import Document

    return datatroves.filter(Document(text, "")) is not True


if __name__ == "__main__":
    sys.exit(main())
