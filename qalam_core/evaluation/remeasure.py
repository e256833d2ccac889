"""Measuring a model's package on the test documents of another one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import torch
from tokenizers import Tokenizer

from qalam_core.corpus.fingerprints import Fingerprints
from qalam_core.errors import PackageError
from qalam_core.evaluation.comparison import Remeasured
from qalam_core.evaluation.integrity import one_line, transformer
from qalam_core.evaluation.results import Report, rounded
from qalam_core.evaluation.scoring import HeldOut, digest_of, score
from qalam_core.package import read
from qalam_core.progress import Progress


def of_report(report: Report, texts: Iterable[str]) -> list[str] | None:
    """The texts of a report's documents, in its order, among those of the test split; None when one is missing."""
    wanted: dict[str, str | None] = dict.fromkeys(report.document_digests)
    for text in texts:
        if (digest := digest_of([text])[:12]) in wanted:
            wanted[digest] = text
    found = [wanted[digest] for digest in report.document_digests]
    return [text for text in found if text is not None] if None not in found else None


def remeasure(
    folder: Path, whose: str, texts: Sequence[str], seen: Fingerprints | None, device: torch.device | str,
    progress: Progress,
) -> Remeasured:  # fmt: skip
    """The nats that the package in `folder`, "the champion"'s for instance, needs for normalised texts.

    Texts that meet `seen`, what the model and those before it have read, are marked as excluded. A package that cannot
    be read or was changed, and one whose tokenizer changes a text, which would then be easier, are not measured.
    """
    try:
        package = read(folder, strict=True)
    except PackageError as error:
        return Remeasured(problem=f"the package of {whose} cannot be read ({one_line(error, folder)})")
    tokenizer = Tokenizer.from_str(package.tokenizer_json)
    tokenizer.encode_special_tokens = True  # a text that spells "<END>" is text
    if tokenizer.normalizer is not None:
        changed = sum(tokenizer.normalizer.normalize_str(text) != text for text in texts)
        if changed:
            return Remeasured(problem=f"the normalisation of {whose} changes {changed} of {len(texts)} test documents")
    model = transformer(package.config, {name: torch.from_numpy(array) for name, array in package.weights.items()})
    documents = HeldOut.of([("", text) for text in texts], tokenizer, package.vocabulary)
    nats, _ = score(model.to(device), documents, progress)
    met = seen.meets(pa.array(texts, pa.large_string())).read.tolist() if seen else [False] * len(texts)
    costs = documents.sum(nats + documents.spelling)
    return Remeasured(tuple(rounded(value) for value in costs), tuple(bool(read_) for read_ in met))
