"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qalam_core.errors import PackageError
from qalam_core.object_store import store_at
from qalam_core.runs import Runs

if TYPE_CHECKING:
    from qalam_core.package import Package

StoreOption = Annotated[
    str,
    typer.Option(
        "--store", envvar="QALAM_STORE", help="Folder of artifacts and runs, or s3://BUCKET/PREFIX.", show_default=True
    ),
]
RecipeArgument = Annotated[
    str,
    typer.Argument(help="A recipe file, or one of: demo, small, medium, large, small-llama, ..."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value of the recipe: train.steps=200."),
]
VerifyOption = Annotated[
    bool,
    typer.Option("--verify", help="Read all sources and artifacts, also where sizes and times are as they were."),
]
ModelArgument = Annotated[str, typer.Argument(help="A package folder, or a run id.")]


def package_folder(model: str, store: str) -> Path:
    """The package folder of `model`, a folder or a run id. Raises StoreError."""
    return Path(model) if Path(model).is_dir() else Runs(store_at(store)).package_folder(model)


def read_one_of(folder: Path, name: str) -> Package:
    """A package, where a command reads several: an error begins with its name."""
    from qalam_core.package import read

    try:
        return read(folder)
    except PackageError as error:
        raise PackageError(f"{name}: {str(error).removeprefix(f'{folder}: ')}") from None
