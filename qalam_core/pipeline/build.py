"""The pipeline's steps as plain functions: (store, what the step reads) -> artifact.
Each names exactly what its result depends on, so that the store builds it once; `build` runs them all,
which is the whole pipeline without Prefect.
It does not know who schedules it, and does no work itself: each body calls the room that does.

STAGE_VERSION rises when a stage's output changes for the same input; a golden test watches that.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from qalam_core import package as packages
from qalam_core.corpus import prepare as corpora
from qalam_core.corpus.prepare import SourceFile
from qalam_core.corpus.sample import sample
from qalam_core.errors import RecipeError, StoreError, TrainingError
from qalam_core.evaluation import gate as gates
from qalam_core.evaluation.gate import Verdict
from qalam_core.pipeline.publish import Published, measured, publish, speed
from qalam_core.recipe import Corpus, Recipe, digest
from qalam_core.reports import markdown as reports
from qalam_core.store import Artifact, Progress, Store, file_sha256, silent
from qalam_core.tokens import shards as shards_of_tokens
from qalam_core.tokens.tokenizer import END, START, ArabicTokenizer
from qalam_core.training import process as trainer

__all__ = [
    "STAGE_VERSION",
    "Published",
    "build",
    "evaluate",
    "export",
    "gate",
    "ingest",
    "judge",
    "prepare",
    "publish",
    "resolve",
    "shards",
    "speed",
    "tokenize",
    "train",
    "trained",
    "vocab",
]  # fmt: skip

log = logging.getLogger(__name__)

Turn = Callable[[], AbstractContextManager[None]]
"""Waits until the machine has room for one more training; entered before the trainer starts, left at its end."""

ENCODE_BYTES = 8_000_000  # text that is encoded at once: some ten times as much memory, on each thread

STAGE_VERSION = {
    "ingest": 1, "prepare": 2, "vocab": 1, "tokenize": 1, "train": 2, "export": 1, "evaluate": 2, "gate": 2,
}  # fmt: skip


def resolve(corpus: Corpus) -> list[SourceFile]:
    """The files behind the recipe's sources, in order, each with the digest of its content."""
    return corpora.resolve(corpus.sources)


def ingest(store: Store, file: SourceFile, progress: Progress = silent) -> Artifact:
    """One source file -> its documents as Arrow."""
    return store.build(
        "ingest", STAGE_VERSION["ingest"], file.identity(), {}, lambda out: corpora.ingest(file, out, progress)
    )


def prepare(store: Store, recipe: Recipe, documents: Sequence[Artifact], progress: Progress = silent) -> Artifact:
    """All documents -> normalised, filtered, deduplicated, split shards, and the rejects with reasons."""
    part = recipe.corpus.canonical()
    del part["sources"]  # what they hold is in the documents' digests
    part["filters_by_slice"] = corpora.filters_by_slice(recipe.corpus)
    paths = [artifact.path / "documents.arrow" for artifact in documents]
    return store.build(
        "prepare", STAGE_VERSION["prepare"], part, _numbered(documents),
        lambda out: corpora.prepare(paths, recipe.corpus, out, progress),
    )  # fmt: skip


def vocab(store: Store, recipe: Recipe, corpus: Artifact, progress: Progress = silent) -> Artifact:
    """The training split -> tokenizer.json."""
    settings = recipe.tokenizer
    part = {**settings.canonical(), "profile": recipe.corpus.profile}
    limit = part.pop("sample_mb") * 1_000_000
    size = corpus.facts["splits"]["train"]["bytes"]
    if size > limit:  # else the whole split is read, whatever the limit and the seed
        part |= {"sample_bytes": limit, "seed": recipe.seed}

    def make(out: Path) -> Mapping[str, Any]:
        tokenizer = ArabicTokenizer(settings.vocab_size, settings.algorithm, recipe.corpus.profile)
        shards = corpora.read_split(corpus.path, "train")
        batches = (
            sample(shards, limit, recipe.seed) if size > limit
            else (batch.column("text") for shard in shards for batch in corpora.read_texts(shard))
        )  # fmt: skip
        read = 0

        def texts() -> Iterable[str]:
            nonlocal read
            for batch in batches:
                yield from batch.to_pylist()
                read += _length(batch)
                progress(read, min(size, limit))

        tokenizer.build_vocab(texts(), settings.min_freq, normalised=True)
        if len(tokenizer) < settings.vocab_size:
            raise RecipeError(
                f"tokenizer.vocab_size is {settings.vocab_size}, but with min_freq {settings.min_freq} the corpus "
                f"supports {len(tokenizer)}; set it to {len(tokenizer)} or less, or add text"
            )
        tokenizer.save(out / "tokenizer.json")
        return {"entries": len(tokenizer), "bytes": read}

    inputs = {name: sha256 for name, sha256 in _shard_digests(corpus).items() if name.startswith("train")}
    return store.build("vocab", STAGE_VERSION["vocab"], part, inputs, make)


def shards(corpus: Artifact) -> list[str]:
    """Names of the corpus shards that become token shards: what `tokenize` is mapped over."""
    return [Path(name).stem for name in _shard_digests(corpus) if not name.startswith("test")]


def tokenize(store: Store, corpus: Artifact, shard: str, tokenizer: Artifact, progress: Progress = silent) -> Artifact:
    """One corpus shard -> one token shard. Unchanged shards keep their artifact when others change."""

    def make(out: Path) -> Mapping[str, Any]:
        words = _tokenizer(tokenizer)
        path = corpus.path / f"{shard}.arrow"
        size, done = path.stat().st_size, 0

        def encoded() -> Iterable[Any]:
            nonlocal done
            for texts in _chunks(path):
                yield words.encode_normalised(texts)
                done += _length(texts)
                progress(min(done, size), size)

        documents, tokens = shards_of_tokens.write_shard(out / "tokens.arrow", encoded(), len(words), START, END)
        return {"documents": documents, "tokens": tokens, "bytes": done, "split": shard.partition("-")[0]}

    inputs = {"shard": _shard_digests(corpus)[f"{shard}.arrow"], "tokenizer": tokenizer.digest}
    return store.build("tokenize", STAGE_VERSION["tokenize"], {"split": shard.partition("-")[0]}, inputs, make)


def train(
    store: Store, recipe: Recipe, tokenizer: Artifact, tokens: Sequence[Artifact], progress: Progress = silent,
    turn: Turn = nullcontext,
) -> Artifact:  # fmt: skip
    """Token shards -> model.safetensors, by `python -m qalam_core.training.loop` in a process of its own.

    Goes on from the checkpoints of a build that was killed. `turn` is entered while the trainer runs.
    Raises TrainingError.
    """
    start = _warm_start(store, recipe, tokenizer, tokens)

    def make(out: Path) -> Mapping[str, Any]:
        from qalam_core.training.loop import Spec  # brings torch, which a fully cached build does without

        def paths(split: str) -> tuple[str, ...]:
            return tuple(str(a.path / "tokens.arrow") for a in tokens if a.facts["split"] == split)

        result = out / "result.json"
        if not result.exists():  # else a build was killed when all was trained, and only its end is missing
            if recipe.train.warm_start and not start:
                log.info("there is no champion under %s yet: the weights start at random", recipe.name)
            initial = _write_initial(store, start, recipe, tokenizer, out) if start else ""
            spec = Spec(
                model=recipe.model, train=recipe.train, vocab_size=tokenizer.facts["entries"], seed=recipe.seed,
                tokens=paths("train"), validation=paths("validation"), out=str(out), initial=initial,
            )  # fmt: skip
            spec.save(out / "spec.json")
            with turn():
                trainer.follow(out / "spec.json", recipe.train.steps, progress)
        for scrap in (*out.glob("spec.json"), *out.glob("initial*"), *out.glob("checkpoint-*"), *out.glob(".*.tmp")):
            scrap.unlink()
        facts: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return {**facts, "warm_start": start}

    inputs = _train_inputs(tokenizer, tokens, start)
    return store.build("train", STAGE_VERSION["train"], _train_part(recipe), inputs, make, resumable=True)


def trained(store: Store, recipe: Recipe, tokenizer: Artifact, tokens: Sequence[Artifact]) -> Artifact | None:
    """What `train` would return, if the store has it already."""
    inputs = _train_inputs(tokenizer, tokens, _warm_start(store, recipe, tokenizer, tokens))
    return store.find("train", STAGE_VERSION["train"], _train_part(recipe), inputs)


def _train_inputs(tokenizer: Artifact, tokens: Sequence[Artifact], start: Mapping[str, str] | None) -> dict[str, str]:
    return {
        "tokenizer": tokenizer.digest, **_numbered(tokens), **({"warm_start": start["package"]} if start else {}),
    }  # fmt: skip


def _train_part(recipe: Recipe) -> dict[str, Any]:
    return {"seed": recipe.seed, "model": recipe.model.canonical(), "train": recipe.train.deciding()}


def _warm_start(store: Store, recipe: Recipe, tokenizer: Artifact, tokens: Sequence[Artifact]) -> dict[str, str] | None:
    """The run to take the first weights from, and the sha256 of its package's manifest; None: start at random.

    "champion" is the last promoted run that is not the model at hand; should that have been champion itself, what
    it started from stands. So building a champion again finds the training that made it.
    """
    wish = recipe.train.warm_start
    if wish != "champion":
        return _package_of(store, wish) if wish else None
    same = {"vocab": [tokenizer.digest], "tokenize": [artifact.digest for artifact in tokens]}
    for number, promotion in enumerate(reversed(store.promotions(recipe.name))):
        if number and not store.has_run(promotion["run"]):
            continue  # an earlier champion may have been deleted to make room; the one that reigns may not
        record = store.run_record(promotion["run"])
        at_hand = all(record["artifacts"][stage] == digests for stage, digests in same.items())
        if not (at_hand and _train_part(Recipe.parse(record["recipe"], promotion["run"])) == _train_part(recipe)):
            return _package_of(store, promotion["run"])
        key = record["artifacts"]["train"][0]
        trained = Artifact("train", key, store.artifact_folder("train", key))
        if trained.path.exists():
            began: dict[str, str] | None = trained.facts.get("warm_start")
            return began
    return None


def _package_of(store: Store, run: str) -> dict[str, str]:
    return {"run": run, "package": file_sha256(store.run_folder(run) / "model" / "manifest.json")}


def _write_initial(store: Store, start: Mapping[str, str], recipe: Recipe, tokenizer: Artifact, out: Path) -> str:
    """The weights to start from, as a file in `out`; -> its path."""
    from safetensors.numpy import save_file

    from qalam_core.training.warm_start import initial_weights

    package = packages.read(store.run_folder(start["run"]) / "model", strict=True)
    if file_sha256(package.path / "manifest.json") != start["package"]:
        raise TrainingError(
            f"train.warm_start: the package of run {start['run']} was sealed anew since the weights that began with "
            "it; restore it, or name another run"
        )
    log.info("the weights start from run %s", start["run"])
    words = _tokenizer(tokenizer)
    save_file(initial_weights(package, words.algorithm, words.words, recipe.model), out / "initial.safetensors")
    return str(out / "initial.safetensors")


def export(store: Store, recipe: Recipe, corpus: Artifact, tokenizer: Artifact, checkpoint: Artifact) -> Artifact:
    """Trained weights and tokenizer -> the package: Python source."""
    from safetensors.numpy import load_file

    facts = {"corpus": corpus.facts, "train": checkpoint.facts, "entries": tokenizer.facts["entries"]}
    card = reports.model_card(recipe, facts)
    inputs = {"corpus": corpus.digest, "tokenizer": tokenizer.digest, "checkpoint": checkpoint.digest}

    def make(out: Path) -> Mapping[str, Any]:
        words = _tokenizer(tokenizer)
        vocabulary = packages.Vocabulary(words.algorithm, words.words, words.merges, words.rules, words.to_json())
        packages.write(
            out / "model", config=packages.config_of(recipe.model.model_dump(), len(words)), vocabulary=vocabulary,
            weights=load_file(checkpoint.path / "model.safetensors"), card=card, provenance=inputs,
            dtype=recipe.package.dtype,
        )  # fmt: skip
        files = [path for path in (out / "model").iterdir() if path.is_file()]
        return {"bytes": sum(path.stat().st_size for path in files), "files": len(files)}

    part = {**recipe.package.canonical(), "card": digest(card), "code": packages.code_digests()}
    return store.build("export", STAGE_VERSION["export"], part, inputs, make)


def evaluate(
    store: Store, recipe: Recipe, package: Artifact, checkpoint: Artifact, corpus: Artifact,
    tokens: Sequence[Artifact], progress: Progress = silent,
) -> Artifact:  # fmt: skip
    """The package on the held-out split -> report.json (reproducible) and budgets.json (sizes and times)."""

    def make(out: Path) -> Mapping[str, Any]:
        from qalam_core.evaluation.evaluate import evaluate as measure

        held_out = [
            pair for shard in corpora.read_split(corpus.path, "test") for batch in corpora.read_texts(shard)
            for pair in zip(batch.column("source").to_pylist(), batch.column("text").to_pylist(), strict=True)
        ]  # fmt: skip
        training = [shards_of_tokens.flat(a.path / "tokens.arrow") for a in tokens if a.facts["split"] == "train"]
        texts = (
            batch.column("text") for shard in corpora.read_split(corpus.path, "train")
            for batch in corpora.read_texts(shard)
        )  # fmt: skip
        report, budgets = measure(
            package.path / "model", checkpoint.path / "model.safetensors", held_out, training, texts,
            recipe.seed, recipe.gate, recipe.package.dtype, progress,
        )  # fmt: skip
        for name, value in (("report.json", report), ("budgets.json", budgets)):
            (out / name).write_text(value.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return {}

    test = {name: sha256 for name, sha256 in _shard_digests(corpus).items() if name.startswith("test")}
    inputs = {"package": package.digest, "checkpoint": checkpoint.digest, **test, **_numbered(tokens)}
    part = {
        "seed": recipe.seed, "prompts": list(recipe.gate.prompts), "confidence": recipe.gate.confidence,
        "storage": recipe.package.dtype,
    }  # fmt: skip
    return store.build("evaluate", STAGE_VERSION["evaluate"], part, inputs, make)


def gate(store: Store, recipe: Recipe, evaluation: Artifact) -> Artifact:
    """The report against the recipe's floors and the champion's report -> verdict.json."""
    rival = _rival(store, recipe.name, evaluation)

    def make(out: Path) -> Mapping[str, Any]:
        verdict = judge(store, recipe, evaluation, rival["run"] if rival else None)
        (out / "verdict.json").write_text(verdict.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return {"passed": verdict.passed, "rival": rival["run"] if rival else ""}

    inputs = {"report": evaluation.digest, "champion": rival["evaluate"] if rival else ""}
    return store.build("gate", STAGE_VERSION["gate"], recipe.gate.canonical(), inputs, make)


def judge(store: Store, recipe: Recipe, evaluation: Artifact, rival: str | None) -> Verdict:
    """The verdict on an evaluation, beside the report of run `rival`. Raises StoreError when that is lost."""
    champion = None
    if rival:
        file = store.run_folder(rival) / "report.json"
        try:
            champion = gates.Report.model_validate_json(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            raise StoreError(
                f"{file}: missing or damaged, and it is the champion's; restore it, or promote another run"
            ) from None
    return gates.judge(*measured(evaluation), recipe.gate, champion)


def _rival(store: Store, name: str, evaluation: Artifact) -> dict[str, str] | None:
    """The champion to beat: the last promoted run that was not this very model, so that building the
    champion again finds the verdict that made it champion."""
    for number, promotion in enumerate(reversed(store.promotions(name))):
        if number and not store.has_run(promotion["run"]):
            continue  # an earlier champion may have been deleted to make room; the one that reigns may not
        record = store.run_record(promotion["run"])
        if record["artifacts"]["evaluate"] != [evaluation.digest]:
            return {"run": promotion["run"], "evaluate": record["artifacts"]["evaluate"][0]}
    return None


def build(recipe: Recipe, store: Store, progress: Progress = silent) -> Published:
    """The whole pipeline, one stage after the other, without Prefect; `progress` counts training steps."""
    documents = [ingest(store, file) for file in resolve(recipe.corpus)]
    corpus = prepare(store, recipe, documents)
    tokenizer = vocab(store, recipe, corpus)
    tokens = [tokenize(store, corpus, shard, tokenizer) for shard in shards(corpus)]
    checkpoint = train(store, recipe, tokenizer, tokens, progress)
    package = export(store, recipe, corpus, tokenizer, checkpoint)
    evaluation = evaluate(store, recipe, package, checkpoint, corpus, tokens)
    judged = gate(store, recipe, evaluation)
    done = [*documents, corpus, tokenizer, *tokens, checkpoint, package, evaluation, judged]
    return publish(store, recipe, done)


# -- what the stages share ------------------------------------------------------------------------


def _numbered(artifacts: Sequence[Artifact]) -> dict[str, str]:
    return {f"{artifact.stage}-{number:05d}": artifact.digest for number, artifact in enumerate(artifacts)}


def _shard_digests(corpus: Artifact) -> dict[str, str]:
    """File name -> sha256 of every shard of the three splits, in order."""
    files = corpus.manifest["files"]
    return {name: files[name]["sha256"] for name in sorted(files) if not name.startswith("rejects")}


def _chunks(shard: Path) -> Iterable[pa.LargeStringArray]:
    """The texts of a shard, joined to some ENCODE_BYTES each: in more text, more words are known already."""
    gathered: list[pa.Array] = []
    for batch in corpora.read_texts(shard):
        gathered.append(batch.column("text"))
        if sum(map(_length, gathered)) >= ENCODE_BYTES:
            yield pa.concat_arrays(gathered)
            gathered.clear()
    if gathered:
        yield pa.concat_arrays(gathered)


def _length(texts: pa.LargeStringArray) -> int:
    """Bytes of text."""
    return pc.sum(pc.binary_length(texts)).as_py() or 0


@lru_cache(maxsize=2)  # one for each shard anew would leave the heap in pieces, and take a third of a second
def _tokenizer(artifact: Artifact) -> ArabicTokenizer:
    return ArabicTokenizer.from_json((artifact.path / "tokenizer.json").read_text(encoding="utf-8"))
