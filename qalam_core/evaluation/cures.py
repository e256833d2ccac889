"""What a person can do about each check of the gate that failed, beside accepting the model as it is."""

from __future__ import annotations

from qalam_core.evaluation.results import Verdict

_TRAIN = "add text; or train longer (train.steps), if validation still improved at the end"

CURES = {
    "integrity": "do not use the package, it is not the trained model; `qalam verify` names what differs: report it",
    "unigram": _TRAIN,
    "token 4-gram": f"{_TRAIN}, or do not require it (gate.beat_ngram)",
    "character 10-gram": f"{_TRAIN}, or do not require it (gate.beat_characters)",
    "champion": _TRAIN,
    "yardstick": "keep the champion's text among the sources, so that both are measured on it",
    "gate settings": "set back the limits in [gate], and the tests, that it names",
    "earlier champions": _TRAIN,
    "drift": _TRAIN,
    "slices": "add text like that of the slices that it names, or keep theirs among the sources",
    "unknown words": 'set tokenizer.algorithm = "bpe", or a larger tokenizer.vocab_size',
    "package size": 'set package.dtype = "f16", or a smaller model.dim',
    "load time": "set a smaller model.dim or tokenizer.vocab_size, or a larger gate.max_load_seconds",
    "repetition": f"{_TRAIN}; if the text repeats itself as much, set a larger gate.max_repeated",
    "samples": f"{_TRAIN}; if many documents are empty or short, set a larger corpus.min_chars",
    "leak alarm": "leave the test documents' copies out of the sources, or name them in corpus.exclude",
    "tests": f"{_TRAIN}; `qalam test RUN` shows each case that failed",
    "tests against the champion": f"{_TRAIN}; `qalam test RUN` shows each case that failed",
    "lineage": "propose an edit of a package that a run of this store has exported",
    "contamination": "leave the copies of documents out of the sources, or name them in corpus.exclude",
}
"""By the check's name."""


def cures(verdict: Verdict) -> list[str]:
    """One line for each check that failed."""
    return [f"{check.name}: {CURES[check.name]}" for check in verdict.checks if not check.passed]
