"""Stage 7: trained weights and the tokenizer -> the package."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from qalam_core.corpus.prepare import CorpusFacts
from qalam_core.inputs import reads
from qalam_core.package.releases import code_digests
from qalam_core.package.write import write
from qalam_core.pipeline.lineage import WarmStart
from qalam_core.pipeline.stage import Stage
from qalam_core.pipeline.vocab import TOKENIZER
from qalam_core.progress import Progress
from qalam_core.recipe import Frozen, Model, Recipe
from qalam_core.reports.card import model_card
from qalam_core.runs import Ancestor, KeptTokenizer, SeenFacts, TrainFacts
from qalam_core.store import Artifact
from qalam_core.tokens.tokenizer import ArabicTokenizer
from qalam_core.training.spec import WEIGHTS, model_config

PACKAGE = "model"


class ExportSettings(Frozen):
    """Everything that a package depends on, besides the corpus, the tokenizer and the weights."""

    model: Model
    dtype: str
    card: str
    code: dict[str, str]  # file -> sha256 of the code in every package
    lineage: tuple[Ancestor, ...]
    kept: KeptTokenizer | None


class ExportFacts(Frozen):
    """The size of a package, and the runs that its model and its tokenizer came from."""

    bytes: int
    files: int
    lineage: tuple[Ancestor, ...]  # of the model; for run.json
    kept: KeptTokenizer | None  # for run.json


@dataclass(frozen=True)
class Export(Stage):
    """Writes the package. Its card has no measured figures: they are measured on the package itself."""

    name = "export"
    version = 6
    unit = "tensors"

    settings: ExportSettings
    corpus: Artifact = field(metadata=reads())  # for the provenance
    tokenizer: Artifact
    checkpoint: Artifact = field(metadata=reads(WEIGHTS))
    seen: Artifact = field(metadata=reads())  # for the provenance

    @classmethod
    def of(
        cls, recipe: Recipe, corpus: Artifact, tokenizer: Artifact, checkpoint: Artifact, seen: Artifact,
        start: WarmStart | None, kept: KeptTokenizer | None = None,
    ) -> Export:  # fmt: skip
        """The stage for a trained model."""
        lineage = start.lineage if start else ()
        card = model_card(
            recipe, corpus.facts(CorpusFacts), checkpoint.facts(TrainFacts), lineage, seen.facts(SeenFacts),
            kept=kept,
        )  # fmt: skip
        settings = ExportSettings(
            model=recipe.model, dtype=recipe.package.dtype, card=card, code=code_digests(), lineage=lineage,
            kept=kept,
        )  # fmt: skip
        return cls(settings, corpus, tokenizer, checkpoint, seen)

    def run(self, out: Path, progress: Progress) -> ExportFacts:
        """Write the package into the folder `model`."""
        from safetensors.numpy import load_file

        lineage = self.settings.lineage
        vocabulary = ArabicTokenizer.from_file(self.tokenizer.path / TOKENIZER).vocabulary
        write(
            out / PACKAGE,
            config=model_config(self.settings.model, len(vocabulary.words)),
            vocabulary=vocabulary,
            weights=load_file(self.checkpoint.path / WEIGHTS),
            card=self.settings.card,
            provenance={
                **{name: found.digest for name, found in self.inputs.items()},
                "ancestors": str(len(lineage)),
                "initial_weights": f"run {lineage[0].run}, package {lineage[0].package}" if lineage else "random",
            },
            dtype=self.settings.dtype,
        )  # fmt: skip
        files = [path for path in (out / PACKAGE).iterdir() if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        return ExportFacts(bytes=size, files=len(files), lineage=lineage, kept=self.settings.kept)
