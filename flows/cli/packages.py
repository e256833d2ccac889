"""The commands that work on one package: show, verify, generate, edit, diff, seal, wheel, sign, export, import.
None of them executes code of a package.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markdown import Markdown
from rich.table import Table

from al_qalam.flows.cli.options import ModelArgument, StoreOption, package_folder, read_one_of
from al_qalam.flows.cli.terminal import out
from qalam_core.display import printable
from qalam_core.errors import PackageError
from qalam_core.object_store import store_at
from qalam_core.runs import Runs
from qalam_core.store import DEFAULT_STORE

PackageArgument = Annotated[Path, typer.Argument(metavar="PACKAGE", help="A package folder.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Path to write to; must not exist.")]


class Foreign(StrEnum):
    """Formats of models for export and import."""

    package = "package"
    transformers = "transformers"
    hub = "hub"
    safetensors = "safetensors"
    original = "original"


def show(
    what: Annotated[str, typer.Argument(help="A run id, or a package folder.")],
    tensor: Annotated[str, typer.Argument(help="Show this tensor of the package.")] = "",
    row: Annotated[str, typer.Option(help="Show this row: a number, or a token.")] = "",
    near: Annotated[str, typer.Option(help="Show the tokens with the most similar embeddings.")] = "",
    full: Annotated[bool, typer.Option("--full", help="Show the whole report of a run.")] = False,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Show a run's result, the content of a package, or one row of a tensor."""
    if row and not tensor:
        raise PackageError("--row: whose? name a tensor before it, such as embedding.weight")
    if sum(map(bool, (tensor, near, full))) > 1 or (full and Path(what).is_dir()):
        raise PackageError("show one thing: a TENSOR, --near of a package, or --full of a run")
    folder = package_folder(what, store)
    if not (tensor or near or Path(what).is_dir()):
        runs = Runs(store_at(store))
        if full:
            out.print(Markdown((runs.folder(what) / "report.md").read_text(encoding="utf-8")))  # printable as written
        else:
            from al_qalam.flows.cli.screen import show_run

            show_run(runs, what)
    elif near:
        _show_neighbours(folder, near)
    elif tensor:
        _show_tensor(folder, tensor, row)
    else:
        _show_package(folder)


def _show_neighbours(folder: Path, token: str) -> None:
    from qalam_core.package.editing.rows import find_row
    from qalam_core.package.read import read_tensor_rows, read_vocabulary_of
    from qalam_core.package.statistics import nearest_tokens

    vocabulary = read_vocabulary_of(folder)
    index = find_row(vocabulary, "embedding.weight", token)
    rows = read_tensor_rows(folder, "embedding.weight")
    for word, cosine in next(iter(nearest_tokens(rows, vocabulary.words, [index], vocabulary.specials.ids())))[1]:
        out.print(f"{cosine:6.3f}  {printable(word)}")


def _show_tensor(folder: Path, tensor: str, row: str) -> None:
    """Print a tensor's statistics, or one row, which is read by seeking: milliseconds even in a file of gigabytes."""
    from qalam_core.package.editing.rows import find_row
    from qalam_core.package.read import read_tensor_rows, read_vocabulary_of

    if not row:
        values = read_tensor_rows(folder, tensor)
    else:
        number = int(row) if row.isascii() and row.isdigit() else find_row(read_vocabulary_of(folder), tensor, row)
        values = read_tensor_rows(folder, tensor, number, number + 1).reshape(-1)
    out.print(" x ".join(map(str, values.shape)) + "  " + "  ".join(_figures(values)), soft_wrap=True)
    if row:
        out.print(" ".join(f"{value:.6g}" for value in values.tolist()), soft_wrap=True)


def _show_package(folder: Path) -> None:
    from qalam_core.package.read import read

    found = read(folder)
    for key, value in found.config.constants().items():
        out.print(f"{key:<14}{value}")
    if origin := found.manifest["provenance"].get("initial_weights"):
        began = "random weights" if origin == "random" else f"the weights of {origin}"
        what = "an edit" if "proposal" in found.manifest["provenance"] else "training"
        out.print(f"{what} began with {began}", soft_wrap=True)
    table = Table("tensor", "shape", "mean", "std", "min", "max", "", box=None)
    for name, values in found.weights.items():
        edited = "edited" if name in found.edited else ""
        table.add_row(name, " x ".join(map(str, values.shape)), *_figures(values), edited)
    out.print(table)


def _figures(values: object) -> list[str]:
    from qalam_core.package.statistics import statistics

    return [f"{figure:.3e}" for figure in statistics(values)]  # type: ignore[arg-type]


def verify(
    package: PackageArgument,
    strict: Annotated[bool, typer.Option("--strict", help="Treat any change as an error (exit status 2).")] = False,
    key: Annotated[Path | None, typer.Option(help="Public key (PEM); also verify the signature.")] = None,
    signature: Annotated[Path | None, typer.Option(help="The signature; default: PACKAGE.sig.")] = None,
) -> None:
    """List changes since the export (exit status 1), and verify a signature."""
    from qalam_core import package as packages
    from qalam_core.package.read import git_remark

    if signature and not key:
        raise PackageError(f"--signature {signature}: give the public key that verifies it with --key")
    if key:
        from qalam_core.package.release.sign import verify_signature

        out.print(f"signed by the key with sha256 {verify_signature(package, key, signature)}", soft_wrap=True)
    found = packages.read(package)
    changes = packages.changes(found)
    unlisted = [f"{name}: not part of the package, and not read; delete it" for name in found.unlisted]
    if strict and (unlisted or changes):
        raise PackageError([*unlisted, *changes][0])
    for message in (*unlisted, *filter(None, [git_remark(package)]), *changes):
        out.print(message, soft_wrap=True)
    if changes:
        raise typer.Exit(1)
    out.print(f"{package}: unchanged since it was exported or sealed", soft_wrap=True)


def generate(
    model: ModelArgument,
    prompt: Annotated[str, typer.Argument(help="Text to continue.")] = "",
    store: StoreOption = DEFAULT_STORE,
    tokens: Annotated[int, typer.Option(min=1, help="Generate at most this many tokens.")] = 60,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the most probable token.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Sample from this many most probable tokens; 0: from all.")] = 50,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Total probability to sample from; 1 is all.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.")] = None,
) -> None:
    """Continue a prompt."""
    from qalam_core import package as packages

    package = packages.read(package_folder(model, store))
    out.print(packages.generate(package, prompt, tokens, temperature, top_k, seed, top_p), soft_wrap=True)


def edit(
    package: PackageArgument,
    tensor: Annotated[str, typer.Argument(help="The tensor to change.")] = "embedding.weight",
    row: Annotated[str, typer.Option(help="The row: a number, or a token.")] = "",
    values: Annotated[str, typer.Option("--set", help="New values of the row, separated by commas.")] = "",
    column: Annotated[int | None, typer.Option(help="With --value: the column to change.")] = None,
    value: Annotated[float | None, typer.Option(help="With --column: its new value in the row.")] = None,
    scale: Annotated[float | None, typer.Option(help="Multiply the row by this.")] = None,
    copy: Annotated[str, typer.Option(help="Copy the values of this row.")] = "",
    add_token: Annotated[str, typer.Option(help="Add this token to the vocabulary.")] = "",
    like: Annotated[list[str] | None, typer.Option(help="With --add-token: start from the mean of these rows.")] = None,
) -> None:
    """Change a row or a value, or add a token; `qalam seal` then updates the digests."""
    from qalam_core.package.editing import rows as edits

    _check_is_of_no_run(package)
    given = [bool(values), value is not None or column is not None, scale is not None, bool(copy), bool(add_token)]
    if sum(given) != 1:
        raise PackageError("choose one edit: --set, --column with --value, --scale, --copy or --add-token")
    if like and not add_token:
        raise PackageError("--like goes with --add-token; --copy takes the values of another row")
    if add_token and row:
        raise PackageError("--add-token makes a row of its own; leave --row out, or name rows to begin with by --like")
    if add_token:
        changes = edits.add_token(package, add_token, like or ())
    elif not row:
        raise PackageError("no row; give one with --row: a number, or a token")
    elif values:
        changes = [edits.set_row(package, tensor, row, _numbers(values))]
    elif scale is not None:
        changes = [edits.scale_row(package, tensor, row, scale)]
    elif copy:
        changes = [edits.copy_row(package, tensor, row, copy)]
    else:
        if value is None or column is None:
            raise PackageError("--column and --value go together")
        changes = [edits.set_value(package, tensor, row, column, value)]
    for change in changes:
        out.print(str(change), soft_wrap=True)


def diff(
    first: ModelArgument,
    second: ModelArgument,
    prompt: Annotated[str | None, typer.Option(help="Also compare the next tokens after this text.")] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """List differences between two packages: tensors, rows by token, vocabulary (exit status 1)."""
    from qalam_core.package.editing.diff import diff as compare
    from qalam_core.package.editing.diff import render

    old, new = (read_one_of(package_folder(name, store), name) for name in (first, second))
    difference = compare(old, new, prompt)
    out.print(render(difference), soft_wrap=True)
    if difference:
        raise typer.Exit(1)


def seal(
    package: PackageArgument,
    note: Annotated[str, typer.Option(help="What was edited and why, for the model card.")],
) -> None:
    """Accept an edit: update the digests, and add a note to the model card."""
    from qalam_core.package.editing.seal import seal as seal_package

    _check_is_of_no_run(package)
    for change in seal_package(package, note):
        out.print(change, soft_wrap=True)
    out.print("sealed")


def _check_is_of_no_run(package: Path) -> None:
    """Raise PackageError for the package of a run, of which what was measured would not hold any more."""
    if package.resolve().with_name("run.json").is_file():
        raise PackageError(f"{package}: the package of a run; copy it elsewhere, and edit the copy")


def wheel(
    package: PackageArgument,
    name: Annotated[str, typer.Option(help="Name of the Python package in the wheel.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder for the wheel.")] = Path(),
    version: Annotated[str | None, typer.Option(help="Version of the wheel; default: that of the release.")] = None,
    edited: Annotated[bool, typer.Option("--edited", help="Allow a package with changes that are not sealed.")] = False,
) -> None:
    """Pack a package as a wheel; the same package gives the same bytes."""
    from qalam_core.package.release.wheel import wheel as pack

    out.print(str(pack(package, folder, name, version, edited=edited)), soft_wrap=True)


def sign(
    package: PackageArgument,
    key: Annotated[Path, typer.Option(help="Private key: PEM, P-256.")],
    signature: Annotated[Path | None, typer.Option("--out", help="File to write; default: PACKAGE.sig.")] = None,
) -> None:
    """Sign a package with an OpenSSF model-signing bundle; `qalam verify --key` verifies it."""
    from qalam_core.package.release.sign import sign as sign_package

    out.print(str(sign_package(package, key, signature)), soft_wrap=True)


def export(
    model: ModelArgument,
    target: Out,
    to: Annotated[
        Foreign | None,
        typer.Option(metavar="FORMAT", help="package (default), hub, transformers or safetensors.", show_default=False),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Storage type of a package's matrices, as `package.dtype` in a recipe: f32, or in a page that of the "
            "package, i8 for f32.",
            show_default=False,
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Write a package in another storage type, for Hugging Face transformers, as safetensors, or as a page.

    An OUT that ends in .html is a page in which the model runs in a browser, without a network.
    """
    from qalam_core.package.interop import browser_page, transformers_folder
    from qalam_core.package.interop import safetensors_file as interop
    from qalam_core.package.interop.storage import convert

    if dtype and to in (Foreign.transformers, Foreign.hub, Foreign.safetensors):
        raise PackageError(f"--dtype {dtype}: --to {to} is float32 in any case; leave one of the two out")
    folder = package_folder(model, store)
    if to is None and target.suffix.lower() == ".html":
        browser_page.export_page(folder, target, dtype)
    elif to is None or to is Foreign.package:
        convert(folder, target, dtype or "f32")
    elif to is Foreign.transformers:
        transformers_folder.export_transformers(folder, target)
    elif to is Foreign.hub:
        from qalam_core.reports.hub import export_hub

        runs = Runs(store_at(store))
        known = not Path(model).is_dir()
        export_hub(folder, target, *((runs.record(model), runs.report(model)) if known else ()))
    elif to is Foreign.safetensors:
        interop.export_safetensors(folder, target)
    else:
        raise PackageError("the original's format can only be imported; choose package, hub, transformers, safetensors")
    out.print(str(target), soft_wrap=True)


def import_(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A folder, or a safetensors file.")],
    target: Out,
    of: Annotated[Foreign, typer.Option("--from", metavar="FORMAT", help="transformers, safetensors or original.")],
    like: Annotated[
        Path | None,
        typer.Option(help="Take the vocabulary, and for safetensors the shape, from this package."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Storage type of the matrices, as `package.dtype` in a recipe.")] = "f32",
) -> None:
    """Make a package from a GPT-2, Llama or Qwen3 checkpoint, a safetensors file, or the original's package."""
    from qalam_core import package as packages
    from qalam_core.package.interop import original, transformers_folder
    from qalam_core.package.interop import safetensors_file as interop

    if of in (Foreign.transformers, Foreign.hub):
        words = packages.read(like).vocabulary if like else None
        remarks = transformers_folder.import_transformers(source, target, vocabulary=words, dtype=dtype)
    elif of is Foreign.original:
        if like is not None:
            raise PackageError("--like: a package of the original has its own vocabulary; leave it out")
        remarks = original.import_original(source, target, dtype=dtype)
    elif of is Foreign.safetensors:
        if like is None:
            raise PackageError("a safetensors file has no vocabulary; give a package that has it with --like")
        remarks = interop.import_safetensors(source, like, target, dtype=dtype)
    else:
        raise PackageError("a package needs no import; choose transformers, safetensors or original")
    for remark in remarks:
        out.print(remark, soft_wrap=True)
    out.print(str(target), soft_wrap=True)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise PackageError(f"--set {text[:40]}: give numbers separated by commas") from None
