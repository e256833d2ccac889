"""What people read: the Markdown report of a run, and the model card that ships in its package.
Takes the recipe, the figures and the verdict as values, gives one string; the card has no times or paths in
it, so that the same build gives the same package.
It does not know files, and measures nothing.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from qalam_core.evaluation.gate import Budgets, Generation, Integrity, Interval, Report, Slice, Verdict
from qalam_core.recipe import Recipe, Source, to_toml

__all__ = ["corpus_table", "markdown", "model_card"]

_SLICE_HEAD = (
    "documents", "bits per byte", "unigram", "trigram", "unknown", "tokens per word", "top-1", "number",
    "bytes",
)  # fmt: skip


def markdown(
    recipe: Recipe,
    report: Report,
    budgets: Budgets,
    verdict: Verdict,
    corpus_stats: Mapping[str, Any],
    timings: Mapping[str, float],
) -> str:
    """A run's report in GitHub's Markdown; `timings` are seconds by stage, `corpus_stats` counts by name."""
    reasons = [f"- {_cell(reason)}" for reason in verdict.reasons()]
    checks = (
        ("passed" if check.passed else "**failed**", check.name, _number(check.value), _number(check.limit))
        for check in verdict.checks
    )
    slices = [_row("**all**", report.overall), *(_row(name, part) for name, part in report.sources.items())]
    seconds = ((stage, f"{spent:.1f}") for stage, spent in timings.items())
    sections = [
        f"# {recipe.name}: {'passed' if verdict.passed else 'did not pass'} the gate",
        "\n".join(reasons) if reasons else "Every check passed.",
        "With plots, and every token's probability: [report.html](report.html), beside this file.",
        "## Checks",
        _table(("", "check", "value", "limit"), checks, raw=True),
        "\n".join(f"- {_cell(check.sentence)}" for check in verdict.checks),
        "## On the held-out documents",
        _table(_SLICE_HEAD, slices),
        "Bits per byte: lower is better. Unknown words pay for their spelling, in every column.",
        "## What it writes",
        *(_rtl(sample.text) for sample in report.samples),
        _unprompted(report.generation),
        "## The package",
        _table(("", "found"), _package(report.integrity, budgets)),
        "## Corpus",
        *_corpus(corpus_stats),
        "## Time",
        _table(("stage", "seconds"), seconds),
        f"<details><summary>Recipe</summary>\n\n```toml\n{to_toml(recipe)}```\n\n</details>",
    ]
    return "\n\n".join(sections) + "\n"


def _unprompted(generation: Generation) -> str:
    return (
        f"{generation.samples} samples without a prompt, at most {generation.length} tokens each: "
        f"{_share(generation.repeated_4grams)} of their 4-grams repeat, "
        f"{_share(generation.distinct_2grams)} of their 2-grams are distinct, "
        f"{_share(generation.end_rate)} reach an end; the longest copy from the training text is "
        f"{generation.longest_copy} tokens."
    )


def _package(integrity: Integrity, budgets: Budgets) -> list[tuple[str, str]]:
    return [
        ("size", f"{budgets.package_mb:.2f} MB"),
        ("load without execution", f"{budgets.load_seconds:.3f} s"),
        ("verifies", _yes(integrity.verifies)),
        ("same tensors as the checkpoint", _yes(integrity.tensors_agree)),
        ("logits against the checkpoint", f"{integrity.checkpoint_difference:.3g} apart"),
        ("loads by plain import", _yes(integrity.loads_by_import)),
        ("numpy agrees with torch", _yes(integrity.numpy_backend_agrees)),
        ("its tokenizer agrees with tokenizer.json", _yes(integrity.tokenizer_agrees)),
    ]


def model_card(recipe: Recipe, facts: Mapping[str, Any], report: Report | None = None) -> str:
    """MODEL_CARD.md. `facts`: `entries` (vocabulary), `corpus` and `train`, each a mapping of counts.

    Without a `report` it is the card of a package that was not measured yet, and says so.
    """
    train, corpus = facts.get("train", {}), facts.get("corpus", {})
    parameters = train.get("parameters")
    size = f" with {parameters:,} parameters" if parameters is not None else ""
    names = [_name(source) for source in recipe.corpus.sources]
    sources = ((_name(source), _origin(source), source.licence or "not stated") for source in recipe.corpus.sources)
    entries = facts.get("entries", recipe.tokenizer.vocab_size)
    sections = [
        f"# {recipe.name}",
        f"A language model for Arabic{size}, as Python source. It continues text, one token after "
        "another. It was trained from scratch on the texts below, and knows nothing else.",
        f'<div dir="rtl">\n\n{_arabic(parameters, names, report)}\n\n</div>',
        "## Data",
        _table(("source", "from", "licence"), sources),
        f"Text was normalised with the profile `{recipe.corpus.profile}`, filtered, and rid of duplicates. "
        f"{recipe.corpus.validation:.1%} of the documents were held out to watch training, and "
        f"{recipe.corpus.test:.1%} to measure the result. Whoever publishes the model answers for these "
        "licences.",
        *_corpus(corpus),
        "## Shape",
        _table(("", "value"), _shape(recipe, parameters, entries)),
        "## Training",
        _schedule(recipe),
        _table(("figure", "value"), _counts(train)),
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


def _shape(recipe: Recipe, parameters: int | None, entries: int) -> list[tuple[str, str]]:
    model = recipe.model
    kind = "byte-level BPE" if recipe.tokenizer.algorithm == "bpe" else "whole words"
    return [
        ("parameters", _number(parameters)),
        ("blocks", str(model.num_layers)),
        ("width", str(model.dim)),
        ("attention heads", str(model.num_heads)),
        ("context, in tokens", str(model.max_seq_len)),
        ("head", "tied to the embedding" if model.tied else "a matrix of its own"),
        ("vocabulary", f"{entries:,} entries, {kind}"),
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
            name, _sure(part.bits_per_byte.model, part.intervals and part.intervals.model, ".4f"),
            f"{part.bits_per_byte.unigram:.4f}", _changed(part.intervals and part.intervals.unigram),
            f"{part.bits_per_byte.trigram:.4f}", _changed(part.intervals and part.intervals.trigram),
            _share(part.next_token_accuracy), _share(part.unknown_rate), f"{part.documents:,}",
        )
        for name, part in rows
    )  # fmt: skip
    head = (
        "held-out documents", "bits per byte", "unigram", "change", "trigram", "change", "next token right",
        "unknown", "number",
    )  # fmt: skip
    found = report.contamination
    return [
        _table(head, cells),
        "Bits per byte: lower is better; in brackets and under “change” stands the bootstrap interval over documents. "
        "Unigram (add-one) and trigram (interpolated Kneser-Ney) are counted on the same training tokens.",
        _unprompted(report.generation),
        *(
            [
                f"Of the test documents, {_share(found.copied)} stand in the training text for more than half, and "
                f"{_share(found.covered)} of their words do: words in runs of 13 that the training text has too."
            ]
            if found
            else []
        ),
    ]


def _sure(value: float, interval: Interval | None, form: str) -> str:
    return f"{value:{form}}" + (f" ({interval.low:{form}} to {interval.high:{form}})" if interval else "")


def _changed(interval: Interval | None) -> str:
    return f"{interval.low:+.1%} to {interval.high:+.1%}" if interval else "-"


def _arabic(parameters: int | None, names: Sequence[str], report: Report | None) -> str:
    size = f" عدد معاملاته {parameters:,}" if parameters is not None else ""
    measured = ""
    if report and (sure := report.overall.intervals):
        bits = report.bits_per_byte
        measured = (
            f" يحتاج في نصوص لم يتدرّب عليها إلى {bits.model:.3f} بتًّا لكل بايت "
            f"(بين {sure.model.low:.3f} و{sure.model.high:.3f})، ويحتاج عدُّ التكرار وحده إلى {bits.unigram:.3f}؛ "
            "والأقل أفضل."
        )
    return (
        f"**ملخّص:** نموذج لغوي عربي صغير{size}، مكتوب على هيئة شيفرة بايثون يمكن قراءتها وتعديلها. "
        f"دُرِّب من الصفر على النصوص الآتية وحدها: {'، '.join(_cell(name) for name in names)}.{measured} "
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


def _corpus(facts: Mapping[str, Any]) -> list[str]:
    """What became of the documents: a table by reason and source, and one of the splits."""
    tables = []
    if facts.get("rejected"):
        tables.append(_table(*corpus_table(facts)))
    if splits := facts.get("splits"):
        rows = ((name, f"{part['documents']:,}", f"{part['bytes'] / 1e6:.2f}") for name, part in splits.items())
        tables.append(_table(("split", "documents", "MB"), rows))
    return tables


def corpus_table(facts: Mapping[str, Any]) -> tuple[Sequence[str], list[Sequence[str]]]:
    """(head, rows) of what became of the documents: read, rejected for each reason, kept; a column a source."""
    parts = {"all": facts, **(facts["sources"] if len(facts["sources"]) > 1 else {})}
    rows = [("read", [part["read"] for part in parts.values()])]
    if facts.get("repaired"):
        rows.append(("repaired", [part["repaired"] for part in parts.values()]))
    rows += [
        (reason.replace("_", " "), [part["rejected"].get(reason, 0) for part in parts.values()])
        for reason in facts["rejected"]
    ]
    rows.append(("kept", [part["kept"] for part in parts.values()]))
    return ("documents", *parts), [(name, *(f"{count:,}" for count in counts)) for name, counts in rows]


def _counts(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every number in a nest of mappings, by its path of names; texts and lists are left out."""
    for key, value in values.items():
        label = f"{prefix} {key}".strip().replace("_", " ")
        if isinstance(value, Mapping):
            yield from _counts(value, f"{label},")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield label, _number(value)


def _row(name: str, part: Slice) -> tuple[str, ...]:
    bits = part.bits_per_byte
    return (
        name,
        f"**{bits.model:.4f}**",
        f"{bits.unigram:.4f}",
        f"{bits.trigram:.4f}",
        _share(part.unknown_rate),
        f"{part.tokens_per_word:.2f}",
        _share(part.next_token_accuracy),
        f"{part.documents:,}",
        f"{part.bytes:,}",
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], raw: bool = False) -> str:
    """A Markdown table; `raw` cells are HTML already."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(cell if raw else _cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text that can neither leave its table cell nor become a tag."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")


def _rtl(text: str) -> str:
    """Text as a right-to-left paragraph that nothing in it can leave.

    The div is for GitHub; where it is dropped, as in Prefect's page, the isolate characters keep the
    full stop at the left end.
    """
    # a sample is shown as it is: never as HTML, never as Markdown
    shown = " ".join(text.split()).translate({ord(mark): f"&#{ord(mark)};" for mark in "<>&\\`*_[]~$|#"})
    return f'<div dir="rtl">\n\n\u2067{shown}\u2069\n\n</div>'


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def _share(value: float) -> str:
    return f"{value:.1%}"


def _yes(value: bool) -> str:
    return "yes" if value else "**no**"
