"""Makes a wheel of a package, so that pip can install a model; needs only the standard library.

The bytes depend only on the package, the name, the version and, unless `compress=False`, the version of zlib.
"""

from __future__ import annotations

import base64
import filecmp
import hashlib
import keyword
import re
import sys
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from qalam_core.errors import PackageError
from qalam_core.files import replacing
from qalam_core.package.read import changes, read

_NAME = re.compile(r"[A-Za-z](?:[A-Za-z0-9_]*[A-Za-z0-9])?")
_COUNT = "(?:0|[1-9][0-9]*)"
_VERSION = re.compile(
    rf"{_COUNT}(?:\.{_COUNT})*(?:(?:a|b|rc){_COUNT})?(?:\.post{_COUNT})?(?:\.dev{_COUNT})?"
    r"(?:\+[a-z0-9]+(?:\.[a-z0-9]+)*)?"
)
_RELEASE = re.compile(r'^__version__ = "([^"]+)"', re.MULTILINE)
_TAKEN = ("numpy", "torch", "pybase64", "qalam_core", "al_qalam")  # an installer would overwrite their files


def wheel(
    folder: Path, out_dir: Path, name: str, version: str | None = None, *, edited: bool = False, compress: bool = True
) -> Path:
    """Write `<name>-<version>-py3-none-any.whl`, which installs the package under the import name `name`.

    The default version is that of the release that wrote the package. A package with changes since export is refused
    unless `edited`, and so is another wheel of that name and version, which installers would take for the same.
    """
    folder, out_dir = Path(folder), Path(out_dir)
    _check_name(name)
    package = read(folder)
    changed = changes(package)
    if changed and not edited:
        raise PackageError(f"{folder}: {changed[0]}; seal or restore it, or request a wheel of the edited package")
    if version is None:
        found = _RELEASE.search((folder / "__init__.py").read_text(encoding="utf-8"))
        version = found[1] if found else ""
    if not _VERSION.fullmatch(version):
        raise PackageError(f'version "{version}": not valid; examples are 1.0, 1.0.2, 1.0rc1 and 1.0+local')
    files = [*package.manifest["files"], "manifest.json"]
    distribution = re.sub("_+", "_", name).lower()
    home = f"{distribution}-{version}.dist-info"
    target = out_dir / f"{distribution}-{version}-py3-none-any.whl"
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            with zipfile.ZipFile(temporary, "w") as archive:
                archive.compression = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
                record = [_add(archive, f"{name}/{file}", _chunks(folder / file)) for file in sorted(files)]
                card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
                for file, text in (("METADATA", _metadata(name, version, card)), ("WHEEL", _WHEEL)):
                    record.append(_add(archive, f"{home}/{file}", iter([text.encode()])))
                lines = [*record, f"{home}/RECORD,,", ""]
                _add(archive, f"{home}/RECORD", iter(["\n".join(lines).encode()]))
            if target.exists() and not filecmp.cmp(target, temporary, shallow=False):
                raise PackageError(
                    f"{target}: another wheel of this version exists; give another --version, or delete it"
                )
    except OSError as error:
        raise PackageError(f"{target}: cannot be written ({error.strerror}); use another folder") from None
    return target


_WHEEL = "Wheel-Version: 1.0\nGenerator: qalam\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise PackageError(f'name "{name}": not an import name; use ASCII letters, digits and _, as in my_model')
    if name in sys.stdlib_module_names or name.lower() in _TAKEN:
        raise PackageError(
            f'name "{name}": Python, the package or this project has a module of that name; choose another'
        )


def _metadata(name: str, version: str, card: str) -> str:
    return (
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        "Summary: An Arabic language model as Python source\n"
        "Requires-Python: >=3.11\nRequires-Dist: numpy\n"
        'Provides-Extra: torch\nRequires-Dist: torch; extra == "torch"\n'
        'Provides-Extra: fast\nRequires-Dist: pybase64; extra == "fast"\n'
        f"Description-Content-Type: text/markdown; charset=UTF-8\n\n{card}"
    )


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from iter(partial(file.read, 1 << 20), b"")


def _add(archive: zipfile.ZipFile, name: str, content: Iterator[bytes]) -> str:
    """Add a file without any data of this machine; -> its line in RECORD."""
    entry = zipfile.ZipInfo(name)  # its default time is the earliest in a zip archive
    entry.compress_type = archive.compression
    entry.create_system = 3  # Unix, where the permissions apply
    entry.external_attr = 0o100644 << 16
    digest, size = hashlib.sha256(), 0
    with archive.open(entry, "w") as file:
        for chunk in content:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    return f"{name},sha256={base64.urlsafe_b64encode(digest.digest()).decode().rstrip('=')},{size}"
