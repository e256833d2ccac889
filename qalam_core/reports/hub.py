"""A folder for the Hugging Face Hub: the model as transformers load it, a card with metadata, and the package."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from qalam_core.evaluation.results import Report
from qalam_core.package.interop.transformers_folder import export_transformers
from qalam_core.runs import RunRecord

SOURCE = "python_source"
"""The folder of the package, which is imported by that name."""

_USE = """
```python
from transformers import pipeline

print(pipeline("text-generation", model="PATH")("قال", max_new_tokens=20)[0]["generated_text"])
```

The folder `{source}` is the same model as Python source, whose weights can be read and edited; it needs numpy alone:
`python -m {source} "قال"`.
"""


def export_hub(package: Path, out: Path, record: RunRecord | None = None, report: Report | None = None) -> None:
    """Write the folder `out`, of a run with its figures. Raises PackageError."""
    export_transformers(package, out)
    shutil.copytree(package, out / SOURCE, ignore=shutil.ignore_patterns("__pycache__", ".git"))
    text = (package / "MODEL_CARD.md").read_text(encoding="utf-8")
    title, _, rest = text.partition("\n")
    head = f"---\n{_metadata(record, report)}\n---\n\n{title}\n{_USE.format(source=SOURCE)}"
    (out / "README.md").write_text(head + rest, encoding="utf-8")


def _metadata(record: RunRecord | None, report: Report | None) -> str:
    """The card's YAML, without a licence: those of the texts are in the card, and who publishes decides."""
    from huggingface_hub import EvalResult, ModelCardData

    results, more = [], dict[str, Any]()
    if record and report:
        name = record.recipe.name
        held_out: dict[str, Any] = {
            "task_type": "text-generation", "dataset_type": name, "dataset_name": f"held-out texts of {name}",
        }  # fmt: skip
        figures = {"bits_per_byte": report.bits_per_byte.model, "accuracy": report.overall.next_token_accuracy}
        results = [EvalResult(**held_out, metric_type=what, metric_value=value) for what, value in figures.items()]
        results += [
            EvalResult(
                task_type="text-generation", dataset_type=tests.name, dataset_name=f"tests of {tests.name}",
                metric_type="accuracy", metric_value=round(tests.share, 4),
            )
            for tests in report.tests
        ]  # fmt: skip
        sources = [source.path for source in record.recipe.corpus.sources if source.path.startswith("hf:")]
        more["model_name"] = name
        if known := [path.removeprefix("hf:") for path in sources if "/" in path]:
            more["datasets"] = known
    card = ModelCardData(
        language="ar", library_name="transformers", pipeline_tag="text-generation", tags=["al-qalam"],
        eval_results=results or None, **more,
    )  # fmt: skip
    return card.to_yaml()
