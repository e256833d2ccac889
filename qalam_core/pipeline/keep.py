"""The champion's tokenizer, which a build keeps while it fits the new text."""

from __future__ import annotations

import logging

from qalam_core.errors import DamagedError
from qalam_core.pipeline.lineage import changed_values, seen_of
from qalam_core.pipeline.prepare import shards_of
from qalam_core.pipeline.vocab import TOKENIZER, EarlierTokenizer, Keeping, Vocab, VocabFacts
from qalam_core.recipe import Recipe
from qalam_core.runs import KeptTokenizer, RunRecord, Runs
from qalam_core.store import Artifact, ArtifactFile, Store

log = logging.getLogger(__name__)


def earlier_tokenizer(recipe: Recipe, corpus: Artifact, runs: Runs) -> EarlierTokenizer | None:
    """The tokenizer to keep while it fits: the champion's; None to train one in any case, the reason is logged.

    If the champion has the same corpus and settings of its tokenizer, it is what that one was to keep: a build without
    new text finds the champion's tokenizer.
    """
    if not recipe.tokenizer.keep:
        return None
    for run, record in runs.champions(recipe.name):
        if (
            not record.proposal
            and record.artifacts["prepare"] == (corpus.digest,)
            and _settings(record.recipe) == _settings(recipe)
        ):
            return recorded_tokenizer(runs.store, record)
        found = _of(runs, run, record, recipe, corpus)
        if isinstance(found, str):
            log.warning("a new tokenizer is trained, and that of champion %s is not kept: %s", run, found)
            return None
        return found
    log.info("there is no champion under %s yet: a tokenizer is trained", recipe.name)
    return None


def recorded_tokenizer(store: Store, record: RunRecord) -> EarlierTokenizer | None:
    """What the build of `record` was to keep, in a store that has it, or has lost it since."""
    if record.tokenizer is None:
        return None
    kept, judged, there = record.tokenizer, record.tokenizer.judged, store.manifests()
    file = ArtifactFile(there.reference("vocab", kept.artifact), TOKENIZER, kept.content)
    keeping = Keeping(before=judged.before, limit=judged.limit)
    return EarlierTokenizer(kept.run, file, there.reference("seen", kept.seen), keeping)


def kept_tokenizer(earlier: EarlierTokenizer | None, tokenizer: Artifact) -> KeptTokenizer | None:
    """The record of what was to be kept, and of whether it was; `tokenizer` is the run's own."""
    judged = tokenizer.facts(VocabFacts).judged
    if earlier is None or judged is None:
        return None
    file, seen = earlier.file, earlier.seen.digest
    return KeptTokenizer(
        run=earlier.run, artifact=file.artifact.digest, content=file.digest, seen=seen, judged=judged
    )  # fmt: skip


def _settings(recipe: Recipe) -> object:
    return recipe.seed, recipe.tokenizer.model_dump(exclude={"keep", "regrow"})


def _of(runs: Runs, run: str, record: RunRecord, recipe: Recipe, corpus: Artifact) -> EarlierTokenizer | str:
    """The tokenizer of a champion, or why it cannot be kept."""
    if "vocab" not in record.artifacts:
        return "it is an edit of a tokenizer, which was not trained on a text that new text could be compared with"
    try:
        (key,) = record.artifacts["vocab"]
        tokenizer = runs.store.manifests().artifact("vocab", key)
    except DamagedError:
        return "its artifact was deleted or damaged"
    seen, made = seen_of(runs, record), tokenizer.manifest
    if seen is None:
        return "there is no undamaged record of the texts that it has read"
    if made.version != Vocab.version:
        return "it was made by another release"
    old, new = (
        {key: value for key, value in settings.items() if key not in ("sampling", "keep")}
        for settings in (made.settings, Vocab.of(recipe, corpus).settings.canonical())
    )
    if changes := list(changed_values(old, new)):
        return "; ".join(changes)
    keeping = Keeping(before=tokenizer.facts(VocabFacts).fit, limit=recipe.tokenizer.regrow)
    read = runs.store.manifests().reference("prepare", record.artifacts["prepare"][0])
    shards = frozenset(shard.digest for shard in shards_of(read, "train")) if read.exists() else frozenset()
    return EarlierTokenizer(run, tokenizer.file(TOKENIZER), seen, keeping, shards)
