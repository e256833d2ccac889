"""Turn an Arabic corpus into a language model whose weights are Python source: the library's public names.

A name is imported when it is first used, so that `import qalam_core` is quick and needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__all__ = [
    "ArabicTokenizer",
    "CorpusError",
    "PackageError",
    "PureCodeTrainer",
    "PureDynamicTransformer",
    "QalamError",
    "Recipe",
    "RecipeError",
    "Runs",
    "Store",
    "StoreError",
    "TrainingError",
    "__version__",
    "build",
    "collect",
    "diff",
    "evaluate",
    "export_safetensors",
    "export_transformers",
    "generate",
    "import_safetensors",
    "import_transformers",
    "plan",
    "read",
    "reproduce",
    "seal",
    "sign",
    "store_at",
    "verify",
    "verify_signature",
]  # fmt: skip

if TYPE_CHECKING:
    from qalam_core.errors import CorpusError, PackageError, QalamError, RecipeError, StoreError, TrainingError
    from qalam_core.evaluation.evaluate import evaluate
    from qalam_core.object_store import store_at
    from qalam_core.original import PureCodeTrainer, PureDynamicTransformer
    from qalam_core.package.editing.diff import diff
    from qalam_core.package.editing.seal import seal
    from qalam_core.package.inference import generate
    from qalam_core.package.interop.safetensors_file import export_safetensors, import_safetensors
    from qalam_core.package.interop.transformers_folder import export_transformers, import_transformers
    from qalam_core.package.read import read, verify
    from qalam_core.package.release.sign import sign, verify_signature
    from qalam_core.pipeline.audit import reproduce
    from qalam_core.pipeline.build import build
    from qalam_core.pipeline.collect import collect
    from qalam_core.pipeline.plan import plan
    from qalam_core.recipe import Recipe
    from qalam_core.runs import Runs
    from qalam_core.store import Store
    from qalam_core.tokens.tokenizer import ArabicTokenizer

    __version__: str
else:  # not for type checkers: with `__getattr__` an unknown name would have the type Any
    _MODULES = {
        "errors": ("CorpusError", "PackageError", "QalamError", "RecipeError", "StoreError", "TrainingError"),
        "evaluation.evaluate": ("evaluate",),
        "object_store": ("store_at",),
        "original": ("PureCodeTrainer", "PureDynamicTransformer"),
        "package.editing.diff": ("diff",),
        "package.editing.seal": ("seal",),
        "package.inference": ("generate",),
        "package.interop.transformers_folder": ("export_transformers", "import_transformers"),
        "package.interop.safetensors_file": ("export_safetensors", "import_safetensors"),
        "package.read": ("read", "verify"),
        "package.release.sign": ("sign", "verify_signature"),
        "pipeline.audit": ("reproduce",),
        "pipeline.build": ("build",),
        "pipeline.collect": ("collect",),
        "pipeline.plan": ("plan",),
        "recipe": ("Recipe",),
        "runs": ("Runs",),
        "store": ("Store",),
        "tokens.tokenizer": ("ArabicTokenizer",),
    }

    def __getattr__(name):
        if name == "__version__":
            value = import_module("importlib.metadata").version("al-qalam")
        else:
            module = next((module for module, names in _MODULES.items() if name in names), None)
            if module is None:
                raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
            value = getattr(import_module(f"qalam_core.{module}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
