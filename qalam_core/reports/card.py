"""The model card that ships in a package, in English with an Arabic summary.
Takes the recipe and the figures as values, gives one string without times or paths: the same build, the same card.
It does not know files, and measures nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from qalam_core.corpus.prepare import CorpusFacts
from qalam_core.evaluation.results import Interval, Report
from qalam_core.recipe import Recipe, Source
from qalam_core.reports.tables import cell, corpus_tables, number, percent, table, unprompted
from qalam_core.runs import TrainFacts

__all__ = ["model_card"]


def model_card(recipe: Recipe, corpus: CorpusFacts, train: TrainFacts, report: Report | None = None) -> str:
    """MODEL_CARD.md. Without a `report` it is the card of a package that was not measured yet, and says so."""
    names = [_name(source) for source in recipe.corpus.sources]
    sources = ((_name(source), _origin(source), source.licence or "not stated") for source in recipe.corpus.sources)
    sections = [
        f"# {recipe.name}",
        f"A language model for Arabic with {train.parameters:,} parameters, as Python source. It continues text, one "
        "token after another. It was trained from scratch on the texts below, and knows nothing else.",
        f'<div dir="rtl">\n\n{_arabic(train.parameters, names, report)}\n\n</div>',
        "## Data",
        table(("source", "from", "licence"), sources),
        f"Text was normalised as `{recipe.corpus.normalisation}`, filtered, and rid of duplicates. "
        f"{recipe.corpus.validation:.1%} of the documents were held out to watch training, and "
        f"{recipe.corpus.test:.1%} to measure the result. Whoever publishes the model answers for these "
        "licences.",
        *corpus_tables(corpus),
        "## Shape",
        table(("", "value"), _shape(recipe, train.parameters)),
        "## Training",
        _schedule(recipe),
        table(("figure", "value"), _counts(train.model_dump())),
        "## Measured",
        *(
            _figures(report)
            if report
            else ["Not yet: figures are measured on this package, and added when it is published."]
        ),
        "## How it was built",
        "Al-Qalam built it from a recipe: the same recipe, texts and kind of machine give the same files, "
        "byte for byte. `manifest.json` holds the digest of every file and tensor, and of the corpus, "
        "tokenizer and checkpoint behind them.",
        "## Intended use and limits",
        _limits(recipe),
    ]
    return "\n\n".join(sections) + "\n"


def _shape(recipe: Recipe, parameters: int) -> list[tuple[str, str]]:
    model = recipe.model
    kind = "byte-level BPE" if recipe.tokenizer.algorithm == "bpe" else "whole words"
    return [
        ("parameters", number(parameters)),
        ("blocks", str(model.num_layers)),
        ("width", str(model.dim)),
        ("attention heads", str(model.num_heads)),
        ("context, in tokens", str(model.max_seq_len)),
        ("head", "tied to the embedding" if model.tied else "a matrix of its own"),
        ("vocabulary", f"{recipe.tokenizer.vocab_size:,} entries, {kind}"),
        ("weights stored as", recipe.package.dtype),
    ]


def _schedule(recipe: Recipe) -> str:
    train = recipe.train
    optimizer = {"adamw": "AdamW", "muon": "Muon on hidden matrices, AdamW elsewhere,"}[train.optimizer]
    decay = {"cosine": "then a cosine", "wsd": "then constant, then linear"}[train.schedule]
    start = {"": "", "champion": " Weights begin with the champion's."}.get(
        train.warm_start, f" Weights begin with run {train.warm_start}'s."
    )
    return (
        f"{optimizer} for {train.steps:,} steps of {train.batch_size} sequences; learning rate "
        f"{train.learning_rate:g} after a warm-up of {train.warmup:.0%}, {decay} to {train.final:g} of it; "
        f"weight decay {train.weight_decay:g}, dropout {recipe.model.dropout:g}, seed {recipe.seed}.{start}"
    )


def _limits(recipe: Recipe) -> str:
    lines = [
        "Meant for study, for experiments with small Arabic models, and as a part to be read and edited.",
        "It makes fluent-looking text, not true text: not for advice, for facts, or for rulings.",
        "It repeats the views and the gaps of its sources, and may repeat passages of them word for word.",
        "It follows no instructions and was not made safe for conversation.",
        f"It sees {recipe.model.max_seq_len} tokens at a time; what came before is forgotten.",
    ]
    if recipe.tokenizer.algorithm == "word":
        lines.append("Words outside its vocabulary are all `<UNK>` to it, and white space is not kept.")
    return "\n".join(f"- {line}" for line in lines)


def _figures(report: Report) -> list[str]:
    """What was measured on the held-out documents, with intervals, and what it writes unprompted."""
    rows = [("all", report.overall), *(report.sources.items() if len(report.sources) > 1 else ())]
    cells = (
        (
            name, _with_interval(part.bits_per_byte.model, part.intervals and part.intervals.model, ".4f"),
            f"{part.bits_per_byte.unigram:.4f}", _change(part.intervals and part.intervals.unigram),
            f"{part.bits_per_byte.trigram:.4f}", _change(part.intervals and part.intervals.trigram),
            percent(part.next_token_accuracy), percent(part.unknown_rate), f"{part.documents:,}",
        )
        for name, part in rows
    )  # fmt: skip
    head = (
        "held-out documents", "bits per byte", "unigram", "change", "trigram", "change", "next token right",
        "unknown", "number",
    )  # fmt: skip
    found = report.contamination
    return [
        table(head, cells),
        "Bits per byte: lower is better; in brackets and under “change” stands the bootstrap interval over documents. "
        "Unigram (add-one) and trigram (interpolated Kneser-Ney) are counted on the same training tokens.",
        unprompted(report.generation),
        *(
            [
                f"Of the test documents, {percent(found.copied)} stand in the training text for more than half, and "
                f"{percent(found.covered)} of their words do: words in runs of 13 that the training text has too."
            ]
            if found
            else []
        ),
    ]


def _with_interval(value: float, interval: Interval | None, form: str) -> str:
    return f"{value:{form}}" + (f" ({interval.low:{form}} to {interval.high:{form}})" if interval else "")


def _change(interval: Interval | None) -> str:
    return f"{interval.low:+.1%} to {interval.high:+.1%}" if interval else "-"


def _arabic(parameters: int, names: Sequence[str], report: Report | None) -> str:
    measured = ""
    if report and (intervals := report.overall.intervals):
        bits = report.bits_per_byte
        measured = (
            f" يحتاج في نصوص لم يتدرّب عليها إلى {bits.model:.3f} بتًّا لكل بايت "
            f"(بين {intervals.model.low:.3f} و{intervals.model.high:.3f})، ويحتاج عدُّ التكرار وحده إلى "
            f"{bits.unigram:.3f}؛ والأقل أفضل."
        )
    return (
        f"**ملخّص:** نموذج لغوي عربي صغير عدد معاملاته {parameters:,}، مكتوب على هيئة شيفرة بايثون يمكن قراءتها "
        "وتعديلها. "
        f"دُرِّب من الصفر على النصوص الآتية وحدها: {'، '.join(cell(name) for name in names)}.{measured} "
        "وظيفته أن يكمل النص كلمة بعد كلمة. ما يكتبه قد يبدو سليمًا وليس بالضرورة صحيحًا، "
        "فلا يُعتمد عليه في المعلومات ولا في النصيحة ولا في الفتوى، وقد يعيد مقاطع من نصوص تدريبه بحروفها."
    )


def _name(source: Source) -> str:
    """As in the report: the slice's name, else the last part of where it is."""
    return source.name or PurePath(source.path.rpartition(":")[2]).stem


def _origin(source: Source) -> str:
    """Where anyone can find it; a place on this machine means nothing elsewhere."""
    if source.path.startswith("package:"):
        return f"the package {source.path.removeprefix('package:')}"
    if source.path.startswith("hf:") and not source.data_files:
        return f"the Hugging Face data set {source.path.removeprefix('hf:')}, revision {source.revision}"
    return "local files"


def _counts(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every number in a nest of mappings, by its path of names; texts and lists are left out."""
    for key, value in values.items():
        label = f"{prefix} {key}".strip().replace("_", " ")
        if isinstance(value, Mapping):
            yield from _counts(value, f"{label},")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield label, number(value)
