"""The commands `git` and `merge`, and the programs that git calls after `qalam git install`.

Git calls `python -P -m al_qalam.flows.cli.git PROGRAM ...`; -P, because the current folder is somebody's repository.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from al_qalam.flows.cli.options import StoreOption, package_folder, read_one_of
from al_qalam.flows.cli.terminal import out
from qalam_core.display import printable
from qalam_core.errors import PackageError, QalamError
from qalam_core.store import DEFAULT_STORE

if TYPE_CHECKING:
    from qalam_core.package import Package
    from qalam_core.package.editing.merge import Choices, Merged

_WEIGHTS = ("weights.py", "weights_[0-9]*.py")
_DERIVED = ("manifest.json", "rows.json", "tokenizer.json", "knowledge_map.py", "vocab.py", "config.py")
_BEGIN, _END = "# begin qalam git install", "# end qalam git install"
MARKER = "<<<<<<< this package is being merged: run `qalam merge --git`, or stop with `git merge --abort` or the like"


class Action(StrEnum):
    """What `qalam git` does."""

    install = "install"


def git(
    action: Annotated[Action, typer.Argument(help="install: let git show and merge weights by word.")],
    uninstall: Annotated[bool, typer.Option("--uninstall", help="Remove what install added.")] = False,
) -> None:
    """Set up the repository of the current folder: `git diff` names words, and packages are merged by word."""
    attributes = Path(_git("rev-parse", "--git-path", "info/attributes").strip())
    before = attributes.read_text(encoding="utf-8") if attributes.exists() else ""
    start, stop = before.find(_BEGIN), before.find(_END)
    own = before[start : stop + len(_END) + 1] if 0 <= start < stop else ""
    rest, wanted = before.replace(own, "") if own else before, "" if uninstall else _attributes()
    changed = []
    if own != wanted:
        attributes.parent.mkdir(parents=True, exist_ok=True)
        joined = rest if not rest or rest.endswith("\n") else f"{rest}\n"
        attributes.write_text(joined + wanted, encoding="utf-8")
        changed.append(f"{attributes}: {'removed' if uninstall else 'added'} the lines of weights files")
    for name, value in _settings().items():
        old = _git("config", "--local", "--default", "", "--get", name).removesuffix("\n")
        if uninstall and old:
            _git("config", "--local", "--unset-all", name)
            changed.append(f"{name}: removed")
        elif not uninstall and old != value:
            _git("config", "--local", "--replace-all", name, value)
            changed.append(f"{name} = {value}")
    for line in changed or ["nothing to change"]:
        out.print(printable(line), soft_wrap=True)


def _attributes() -> str:
    lines = [f"{name} diff=qalam merge=qalam" for name in _WEIGHTS] + [f"{name} merge=qalam" for name in _DERIVED]
    return "\n".join([_BEGIN, *lines, _END, ""])


def _settings() -> dict[str, str]:
    program = f"{shlex.quote(sys.executable)} -P -m al_qalam.flows.cli.git"
    return {
        "diff.qalam.command": f"{program} diff",
        "diff.qalam.textconv": f"{program} text",
        "diff.qalam.cachetextconv": "false",  # the text depends on vocab.py, which the cache would not see
        "merge.qalam.name": "rows of a model by word",
        "merge.qalam.driver": f"{program} merge %O %A %B %P",
    }


def merge(
    base: Annotated[str, typer.Argument(help="The package from which both come: a folder, or a run id.")] = "",
    ours: Annotated[str, typer.Argument(help="One package that was made of it.")] = "",
    theirs: Annotated[str, typer.Argument(help="The other one.")] = "",
    target: Annotated[Path | None, typer.Option("--out", help="Write the result here; must not exist.")] = None,
    of_git: Annotated[bool, typer.Option("--git", help="Finish git's merge, rebase or cherry-pick instead.")] = False,
    take_ours: Annotated[bool, typer.Option("--ours", help="In conflicts, take the rows of OURS.")] = False,
    take_theirs: Annotated[bool, typer.Option("--theirs", help="In conflicts, take the rows of THEIRS.")] = False,
    take_mean: Annotated[bool, typer.Option("--mean", help="In conflicts, take the mean of both rows.")] = False,
    row: Annotated[
        list[str] | None,
        typer.Option(
            metavar="'TENSOR ROW=SIDE'", help="Decide one conflict: ours, theirs or mean, of a word or number."
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Unite two packages that come from one, by tensor, row and word; conflicts are listed (exit status 1)."""
    choices = _choices(ours=take_ours, theirs=take_theirs, mean=take_mean, rows=row or [])
    if of_git:
        if base or target:
            raise PackageError("--git takes the three packages from git; leave out BASE, OURS, THEIRS and --out")
        _merge_of_git(choices)
        return
    if not theirs:
        raise PackageError("give three packages, BASE OURS THEIRS, or --git in a merge that git began")
    old, one, other = (read_one_of(package_folder(name, store), name) for name in (base, ours, theirs))
    if target is not None and target.exists():
        raise PackageError(f"{target}: exists; name another folder")
    if not _unite((old, one, other), target, choices):
        raise typer.Exit(1)
    out.print(printable(str(target)) if target else "no conflict; write the result with --out", soft_wrap=True)


def _choices(*, ours: bool, theirs: bool, mean: bool, rows: list[str]) -> Choices:
    from qalam_core.package.editing.merge import Choices, Side

    given = [side for side, taken in ((Side.ours, ours), (Side.theirs, theirs), (Side.mean, mean)) if taken]
    if len(given) > 1:
        raise PackageError("choose one of --ours, --theirs and --mean; --row decides single rows otherwise")
    sides = {}
    for text in rows:
        (tensor, space, rest), (key, equals, side) = text.partition(" "), text.partition(" ")[2].rpartition("=")
        if not (space and rest and equals and key) or side not in [*Side]:
            raise PackageError(f"--row {text[:80]!a}: write 'TENSOR ROW=ours', or theirs, or mean")
        word = key[1:-1] if len(key) > 2 and key[0] == key[-1] == '"' else key
        sides[tensor, int(key) if key.isascii() and key.isdigit() else word] = Side(side)
    return Choices(given[0] if given else None, sides)


def _unite(three: tuple[Package, Package, Package], target: Path | None, choices: Choices) -> bool:
    """Merge and write; say what came of it. -> whether there is no conflict."""
    from qalam_core.package.editing.merge import merge as merge_packages
    from qalam_core.package.editing.merge import unchanged_side, write_merged

    if (whole := unchanged_side(*three)) is not None:
        if choices.rows:
            raise PackageError("--row: only one side changed, so nothing is in conflict; leave it out")
        side = next(name for name, package in zip(("base", "ours", "theirs"), three, strict=True) if package is whole)
        out.print(f"only one side changed: the result is {side}", soft_wrap=True)
        if target is not None:
            target.mkdir(parents=True)
            for name in (*whole.manifest["files"], "manifest.json"):
                shutil.copyfile(whole.path / name, target / name)
        return True
    merged = merge_packages(*three, choices)
    for conflict in merged.conflicts:
        out.print(f"conflict: {printable(str(conflict))}", soft_wrap=True)
    if merged.conflicts:
        decide = "decide with --ours, --theirs, --mean or --row; nothing is written"
        out.print(f"conflicts: {len(merged.conflicts)}; {decide}", soft_wrap=True)
        return False
    _show(merged)
    if target is not None:
        write_merged(target, merged, *three)
    return True


def _show(merged: Merged) -> None:
    from qalam_core.package.runtime.data_reader import quote

    for name, count in merged.theirs.items():
        out.print(f"{name}: {count} of {len(merged.weights[name])} rows from theirs", soft_wrap=True)
    for sign, words in (("+", merged.added), ("-", merged.removed)):
        if words:
            out.print(f"words {sign}{len(words)}: {', '.join(map(quote, words))}", soft_wrap=True)
    for line in merged.resolved:
        out.print(f"decided: {printable(line)}", soft_wrap=True)


def _merge_of_git(choices: Choices) -> None:
    """Unite every package of the repository that is in conflict, and stage the results."""
    top = Path(_git("rev-parse", "--show-toplevel").removesuffix("\n"))
    base, ours, theirs = _three_commits()
    unmerged = {record.split("\t", 1)[1] for record in _git("ls-files", "-u", "-z", cwd=top).split("\0") if record}
    dirty = set(_git("diff", "--name-only", "-z", cwd=top).split("\0")) - unmerged
    folders = sorted({str(Path(path).parent) for path in unmerged if _is_package(top, ours, str(Path(path).parent))})
    if not folders:
        raise PackageError("no package is in conflict; git add and git commit the rest")
    clean = True
    for folder in folders:
        if edited := sorted(path for path in dirty if path and str(Path(path).parent) == folder):
            raise PackageError(f"{edited[0]}: edited since the merge began; git restore it, and edit it afterwards")
        if staged := _staged_by_hand(top, folder, (base, ours, theirs)):
            path = shlex.quote(f":/{staged[0]}")
            cure = f"git restore --source=HEAD --staged --worktree {path}, and edit it afterwards"
            raise PackageError(f"{staged[0]}: staged since the merge began, and would be overwritten; {cure}")
        with tempfile.TemporaryDirectory() as name:
            temporary = Path(name)
            sides = (("base", base), ("ours", ours), ("theirs", theirs))
            old, one, other = (
                read_one_of(_checked_out(top, commit, folder, temporary / side), f"{side}, {commit[:12]}")
                for side, commit in sides
            )
            out.print(f"{printable(folder)}:", soft_wrap=True)
            if _unite((old, one, other), temporary / "merged", choices):
                _replace(top, folder, temporary / "merged")
            else:
                clean = False
    if not clean:
        raise typer.Exit(1)


def _three_commits() -> tuple[str, str, str]:
    """Base, ours and theirs of what git is doing: a merge, a cherry-pick, a rebase or a revert."""
    for name in ("MERGE_HEAD", "CHERRY_PICK_HEAD", "REBASE_HEAD", "REVERT_HEAD"):
        found = _git("rev-parse", "-q", "--verify", name, check=False).strip()
        if not found:
            continue
        if name == "MERGE_HEAD":
            heads = Path(_git("rev-parse", "--git-path", name).removesuffix("\n")).read_text().split()
            if len(heads) > 1:
                raise PackageError(f"{len(heads)} branches at once; git merge --abort, and merge one after another")
            bases = _git("merge-base", "--all", "HEAD", found, check=False).split()
            if len(bases) != 1:
                raise PackageError(f"{len(bases)} common commits; check them out, and run qalam merge BASE OURS THEIRS")
            return bases[0], "HEAD", found
        parents = _git("rev-list", "--parents", "-n", "1", found).split()[1:]
        if len(parents) != 1:
            raise PackageError(f"{name} has {len(parents)} parents; run qalam merge BASE OURS THEIRS")
        return (found, "HEAD", parents[0]) if name == "REVERT_HEAD" else (parents[0], "HEAD", found)
    raise PackageError("git is in no merge, rebase, cherry-pick or revert; give three packages: BASE OURS THEIRS")


def _is_package(top: Path, commit: str, folder: str) -> bool:
    names = _git("ls-tree", "-z", "--name-only", f"{commit}:{'' if folder == '.' else folder}", cwd=top, check=False)
    return {"manifest.json", "weights.py"} <= set(names.split("\0"))


def _staged_by_hand(top: Path, folder: str, commits: tuple[str, ...]) -> list[str]:
    """The files of a package that are in the index as none of the commits has them, and are not in conflict."""
    known: set[tuple[str, str]] = set()
    for commit in commits:
        tree = f"{commit}:{'' if folder == '.' else folder}"
        for record in _git("ls-tree", "-z", tree, cwd=top, check=False).split("\0"):
            fields, _, name = record.partition("\t")
            known |= {(name, blob) for blob in fields.split()[2:]}
    found = []
    for record in _git("--literal-pathspecs", "ls-files", "-s", "-z", "--", folder, cwd=top).split("\0"):
        fields, _, path = record.partition("\t")
        if path and str(Path(path).parent) == folder:
            _, blob, stage = fields.split()
            if stage == "0" and (Path(path).name, blob) not in known:
                found.append(path)
    return found


def _checked_out(top: Path, commit: str, folder: str, target: Path) -> Path:
    """The package of a commit, as git would check it out."""
    if not _is_package(top, commit, folder):
        raise PackageError(f"{folder}: no package in {commit[:12]}; check the three out, and run qalam merge on them")
    target.mkdir()
    index = {"GIT_INDEX_FILE": str(target.with_suffix(".index"))}
    _git("read-tree", f"{commit}:{'' if folder == '.' else folder}", cwd=top, environment=index)
    _git("checkout-index", "--all", "--quiet", f"--prefix={target}/", cwd=top, environment=index)
    return target


def _replace(top: Path, folder: str, merged: Path) -> None:
    """Put a merged package into the work tree and the index; weights files that it does not have are deleted."""
    from qalam_core.package.editing.lines import save
    from qalam_core.package.runtime.weights_reader import weight_files

    target = top / folder
    names = sorted(path.name for path in merged.iterdir() if path.name != "manifest.json")
    gone = {path.name for path in weight_files(target)} - set(names)
    save(target, {name: (merged / name).read_bytes() for name in (*names, "manifest.json")})
    for name in gone:
        (target / name).unlink()
    _git("add", "--", *names, "manifest.json", *sorted(gone), cwd=target)


def _git(
    *arguments: str, cwd: Path | None = None, check: bool = True, environment: Mapping[str, str] | None = None
) -> str:
    """What git prints. With `check`, an error of git is one of ours."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=cwd, capture_output=True, check=False, env={**os.environ, **(environment or {})}
        )
    except FileNotFoundError:
        raise PackageError("git is not installed") from None
    if done.returncode and check:
        reason = done.stderr.decode("utf-8", "replace").strip().partition("\n")[0]
        raise PackageError(f"git {arguments[0]}: {reason or 'failed'}")
    return done.stdout.decode("utf-8", "surrogateescape") if not done.returncode else ""


def _diff(path: str, old: str, old_hex: str, _mode: str, new: str, new_hex: str, *_: str) -> None:
    """Git's external diff: the changed rows of a weights file."""
    from qalam_core.package.editing.weights_diff import changes_of, is_weights, read_parts

    _say(f"weights {printable(path)}")
    if os.devnull in (old, new):
        _say("  new file" if old == os.devnull else "  deleted")
        return
    try:
        if not is_weights(Path(old)) and not is_weights(Path(new)):
            raise PackageError("not a weights file")
        words = [_words_of(path, name, blob) for name, blob in ((old, old_hex), (new, new_hex))]
        lines = changes_of(read_parts(Path(old)), read_parts(Path(new)), words[0], words[1])
    except PackageError as error:
        _say(f"  shown as text: {printable(str(error))}")
        subprocess.run(["git", "diff", "--no-index", "--no-ext-diff", "--no-textconv", "--", old, new], check=False)
        return
    if None in words:
        _say("  the words of a side are not known; rows have numbers")
    for line in lines or ["the text changed, every value is the same"]:
        _say(f"  {printable(line)}")


def _text(name: str) -> None:
    """Git's textconv: a weights file as one line for each row."""
    from qalam_core.package.editing.weights_diff import as_text, read_parts

    file = Path(name)
    try:
        parts = read_parts(file)
    except PackageError:
        sys.stdout.buffer.write(file.read_bytes())
        return
    blob = _git("hash-object", "--no-filters", "--", name, check=False).strip()
    for line in as_text(parts, _words_of("", name, blob)):
        _say(printable(line))


def _words_of(path: str, file: str, blob: str) -> tuple[str, ...] | None:
    """The words beside a version of a weights file; None if they are not found.

    They are in the work tree, or in the index or the commit that has this version: git passes its content alone.
    """
    from qalam_core.package.read import read_vocabulary_of

    with tempfile.TemporaryDirectory() as name:
        folder = Path(file).parent
        if not (folder / "vocab.py").exists():
            folder = Path(name)
            place = _place_of(path, blob)
            for part in ("config.py", "vocab.py"):
                text = _git("show", f"{place}{part}", check=False) if place else ""
                (folder / part).write_bytes(text.encode("utf-8", "surrogateescape"))
        try:
            return read_vocabulary_of(folder).words
        except PackageError:
            return None


def _place_of(path: str, blob: str) -> str:
    """`REVISION:FOLDER/` of a version of a file, REVISION being empty for the index; "" if it is nowhere."""
    if not blob.strip("0"):
        return ""
    paths = ["--", path] if path else []
    for record in _git("ls-files", "-s", "-z", *paths, check=False).split("\0"):
        fields, _, name = record.partition("\t")
        if blob in fields.split():
            return f":{name[: name.rfind('/') + 1]}"
    arguments = ("log", "--all", "-m", "--raw", "--no-abbrev", "--no-renames", "--format=%H", "--find-object", blob)
    commit = ""
    for line in _git("-c", "core.quotePath=false", *arguments, *paths, check=False).splitlines():
        fields, _, name = line.partition("\t")
        if not line.startswith(":"):
            commit = line or commit
        elif fields.split()[3] == blob:  # the commit that brought it
            return f"{commit}:{name[: name.rfind('/') + 1]}"
    return ""


def _conflict(base: str, ours: str, theirs: str, path: str) -> None:
    """Git's merge driver: a package is united as a whole, so mark each file of it that both sides changed.

    No reader accepts the marked files, so a package that was committed without being united is refused. Files of the
    same names that are not in a package are merged as git does.
    """
    folder = str(Path(path).parent)
    if not _is_package(Path(), "HEAD", folder):
        sys.exit(subprocess.run(["git", "merge-file", ours, base, theirs], check=False).returncode)
    Path(ours).write_bytes(f"{MARKER}\n".encode() + Path(ours).read_bytes())
    sys.stderr.write(f"{printable(path)}: both sides changed it; `qalam merge --git` unites the package by word\n")
    sys.exit(1)


def _say(line: str) -> None:
    sys.stdout.buffer.write(f"{line}\n".encode())


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except QalamError as error:
        sys.stderr.write(f"error: {printable(str(error))}\n")
        sys.exit(2)


if __name__ == "__main__":
    with _one_line():
        programs: dict[str, Callable[..., None]] = {"diff": _diff, "text": _text, "merge": _conflict}
        programs[sys.argv[1]](*sys.argv[2:])
