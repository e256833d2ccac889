"""Release the version in qalam_core/package/runtime/__init__.py: `make release`, or `make release ARGS=--dry-run`.

In a copy of the tree, it records the digests of the code that packages carry, dates the changelog, builds the wheel,
installs it into an empty environment and builds the demo model there. Only then it commits, tags and writes dist/.
A dry run stops before that, and also takes a tree with changes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from datetime import UTC, datetime
from pathlib import Path

from qalam_core.package.releases import RELEASES, code_digests
from qalam_core.package.runtime import __version__ as version

ROOT = Path(__file__).resolve().parent.parent
TAG = f"v{version}"
UNRELEASED = "## Unreleased\n"


def main() -> None:
    """Release, or try to."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--dry-run", action="store_true", help="change nothing in the tree")
    dry_run = arguments.parse_args().dry_run
    if git("status", "--porcelain") and not dry_run:
        sys.exit("release: the tree has changes that are not committed; commit them first")
    if git("tag", "--list", TAG):
        sys.exit(f"release: the tag {TAG} exists; raise __version__ in qalam_core/package/runtime/__init__.py")
    changed = {str(RELEASES.relative_to(ROOT)): releases(), "CHANGELOG.md": changelog()}
    with tempfile.TemporaryDirectory(prefix="qalam-release-") as folder:
        tree = copy_of_tree(Path(folder, "tree"))
        for name, content in changed.items():
            (tree / name).write_text(content, encoding="utf-8")
        wheel = build_wheel(tree)
        try_wheel(wheel, Path(folder))
        if dry_run:
            print(f"dry run: {wheel.name} builds the demo model; {TAG} was neither committed nor tagged")
            return
        for name, content in changed.items():
            (ROOT / name).write_text(content, encoding="utf-8")
        (ROOT / "dist").mkdir(exist_ok=True)
        shutil.copy2(wheel, ROOT / "dist")
    git("add", *changed)
    git("commit", "--message", f"Release {version}")
    git("tag", "--annotate", TAG, "--message", f"Al-Qalam {version}")
    print(f"released dist/{wheel.name}; to publish: git push --follow-tags")


def releases() -> str:
    """The content of releases.json, with the code of this release."""
    known = json.loads(RELEASES.read_text(encoding="utf-8"))
    if known.setdefault(version, code_digests()) != code_digests():
        sys.exit(f"release: files that packages carry have changed since {version}; raise __version__")
    return json.dumps(known, indent=1) + "\n"


def changelog() -> str:
    """The changelog, with what is unreleased under this version and today's date."""
    before, heading, after = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition(UNRELEASED)
    if not after.partition("\n## ")[0].strip():
        sys.exit(f"release: CHANGELOG.md has nothing under {UNRELEASED.strip()!r}")
    return f"{before}{heading}\n## {version} - {datetime.now(UTC):%Y-%m-%d}\n{after}"


def copy_of_tree(target: Path) -> Path:
    """Every file that git does not ignore."""
    for name in filter(None, git("ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0")):
        source = ROOT / name
        if source.is_symlink() or source.is_file():  # not one that was deleted
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name, follow_symlinks=False)
    return target


def build_wheel(tree: Path) -> Path:
    """Build the wheel of a tree."""
    pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", str(tree / "dist"), str(tree))
    return next((tree / "dist").glob(f"al_qalam-{version}-*.whl"))


def try_wheel(wheel: Path, folder: Path) -> None:
    """Install it into an empty environment, and build the demo model with it, away from this tree."""
    venv.create(folder / "venv", with_pip=True)
    scripts = folder / "venv" / "bin"
    pip(str(scripts / "python"), "install", "--constraint", str(ROOT / "constraints.txt"), f"{wheel}[demo]")
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "QALAM", "PREFECT"))
    }
    here = folder / "empty"
    here.mkdir()
    for command in (["--version"], ["build", "demo"]):
        subprocess.run([scripts / "qalam", *command], cwd=here, env=environment, check=True)


def pip(python: str, *arguments: str) -> None:
    """Run pip."""
    subprocess.run([python, "-m", "pip", "--disable-pip-version-check", *arguments, "--quiet"], check=True)


def git(*arguments: str) -> str:
    """Run git in this tree; -> its output."""
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
