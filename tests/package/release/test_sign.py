from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from qalam_core.errors import PackageError
from qalam_core.package.editing.rows import scale_row
from qalam_core.package.release.sign import sign, signature_path, verify_signature
from tests.importing import import_it
from tests.package.conftest import write_key


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_key(tmp_path, ec.derive_private_key(1234567, ec.SECP256R1()))


def payload(signature: Path) -> dict[str, Any]:
    bundle = json.loads(signature.read_bytes())
    statement: dict[str, Any] = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    return statement


def test_a_signature_lists_every_file_and_is_deterministic(
    package: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    path = sign(package, keys[0])
    assert path == signature_path(package) == tmp_path / "model.sig"
    first = path.read_bytes()
    assert verify_signature(package, keys[1]) == verify_signature(package, keys[1], path)
    bundle = json.loads(first)
    assert bundle["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
    assert bundle["verificationMaterial"]["publicKey"]["hint"] == verify_signature(package, keys[1])
    statement = payload(path)
    assert statement["predicateType"] == "https://model_signing/signature/v1.0"
    names = [resource["name"] for resource in statement["predicate"]["resources"]]
    assert names == sorted(path.name for path in package.iterdir() if path.name != ".gitattributes")
    assert sign(package, keys[0]).read_bytes() == first
    assert str(tmp_path) not in json.dumps(statement)
    package.rename(tmp_path / "renamed")
    verify_signature(tmp_path / "renamed", keys[1], path)


def plant(folder: Path, text: str, name: str) -> None:
    """Plant a compilation of other source as the cache of `name`."""
    source = folder / "planted.py"
    source.write_text(text, encoding="utf-8")
    script = (
        "import py_compile, sys, importlib.util as u, pathlib\n"
        "cache = u.cache_from_source(sys.argv[2])\n"
        "py_compile.compile(sys.argv[1], cache, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)"
    )
    subprocess.run([sys.executable, "-c", script, source, folder / name], check=True)
    source.unlink()


def change(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-2] ^= 1
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: change(p / "weights.py"), "'weights.py' is not as signed"),
        (lambda p: change(p / "MODEL_CARD.md"), "'MODEL_CARD.md' is not as signed"),
        (lambda p: change(p / "manifest.json"), r"manifest.json.* (not as signed|not valid JSON)"),
        (lambda p: change(p / ".gitattributes"), "'.gitattributes' is not as signed"),
        (lambda p: (p / "more.txt").write_bytes(b""), "'more.txt' was not signed"),
        (lambda p: (p / ".gitignore").write_bytes(b"*.py"), "'.gitignore' was not signed"),
        (lambda p: (p / "rows.json").unlink(), "'rows.json' was signed and is missing"),
        (lambda p: (p / "manifest.json").unlink(), "'manifest.json' was signed and is missing"),
        (lambda p: plant(p, "print('planted')\n", "loader.py"), r"'__pycache__/loader\.cpython.*' was not signed"),
        (lambda p: ((p / "sub").mkdir(), (p / "sub/x").touch()), "'sub/x' was not signed"),
        (lambda p: (p / "link").symlink_to(p / "config.py"), "'link' is a link"),
        (lambda p: shutil.rmtree(p), "not a folder"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("processes")
def test_any_change_after_signing_is_refused(
    package: Path, keys: tuple[Path, Path], damage: Callable[[Path], Any], message: str
) -> None:
    sign(package, keys[0])
    verify_signature(package, keys[1])
    damage(package)
    with pytest.raises(PackageError, match=message) as caught:
        verify_signature(package, keys[1])
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("processes")
def test_the_interpreters_own_cache_is_accepted(package: Path, keys: tuple[Path, Path]) -> None:
    import_it(package)
    assert (package / "__pycache__").is_dir()
    sign(package, keys[0])
    verify_signature(package, keys[1])


def test_a_signature_inside_the_package_excludes_itself(package: Path, keys: tuple[Path, Path]) -> None:
    (package / ".git").mkdir()
    (package / ".git" / "config").touch()
    path = sign(package, keys[0], package / "model.sig")
    verify_signature(package, keys[1], path)
    assert payload(path)["predicate"]["serialization"]["ignore_paths"][-1] == "model.sig"
    (package / "other.sig").write_bytes(path.read_bytes())
    with pytest.raises(PackageError, match=r"'other\.sig' was not signed"):
        verify_signature(package, keys[1], path)
    with pytest.raises(PackageError, match=r"inside a package a signature is named model\.sig"):
        verify_signature(package, keys[1], package / "other.sig")


def test_another_key_and_a_forged_bundle_are_refused(package: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    path = sign(package, keys[0])
    _, other = write_key(tmp_path, ec.derive_private_key(7654321, ec.SECP256R1()), "other")
    with pytest.raises(PackageError, match="signed with another key"):
        verify_signature(package, other)
    original = path.read_text(encoding="utf-8")
    bundle = json.loads(original)
    del bundle["verificationMaterial"]["publicKey"]["hint"]
    path.write_text(json.dumps(bundle), encoding="utf-8")
    verify_signature(package, keys[1])
    with pytest.raises(PackageError, match="did not make this signature"):
        verify_signature(package, other)
    change(package / "weights.py")
    statement = payload(path)
    statement["predicate"]["resources"].pop()
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    path.write_text(json.dumps(bundle), encoding="utf-8")
    with pytest.raises(PackageError, match="did not make this signature"):
        verify_signature(package, keys[1])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda bundle: bundle.update(mediaType="x"), "another kind"),
        (lambda bundle: bundle["dsseEnvelope"].update(payloadType="x"), "another kind"),
        (lambda bundle: bundle["dsseEnvelope"].update(signatures=[]), "not a signature made with a key"),
        (lambda bundle: bundle["dsseEnvelope"].update(payload="é"), "not a signature made with a key"),
        (lambda bundle: bundle.pop("verificationMaterial"), "not a signature made with a key"),
        (lambda bundle: bundle["dsseEnvelope"]["signatures"][0].update(sig="AAAA"), "did not make"),
        (lambda bundle: bundle.update(dsseEnvelope=[1]), "not a signature made with a key"),
    ],
)  # fmt: skip
def test_bundles_of_another_kind_are_refused(package: Path, keys: tuple[Path, Path], spoil: Any, message: str) -> None:
    path = sign(package, keys[0])
    bundle = json.loads(path.read_bytes())
    spoil(bundle)
    path.write_text(json.dumps(bundle), encoding="utf-8")
    with pytest.raises(PackageError, match=message):
        verify_signature(package, keys[1])
    for text, reason in (("[" * 100000, "not valid JSON"), ("", "not valid JSON"), ("[]", "not a signature")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(PackageError, match=reason):
            verify_signature(package, keys[1])


def leave_out(statement: dict[str, Any], name: str) -> None:
    predicate = statement["predicate"]
    predicate["serialization"]["ignore_paths"].append(name)
    predicate["resources"] = [resource for resource in predicate["resources"] if resource["name"] != name]
    digests = b"".join(bytes.fromhex(resource["digest"]) for resource in predicate["resources"])
    statement["subject"][0]["digest"]["sha256"] = hashlib.sha256(digests).hexdigest()


def resign(path: Path, key: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Sign an edited statement, which `sign` would not produce."""
    from qalam_core.package.release.sign import _load_key, _signature

    bundle, statement = json.loads(path.read_bytes()), payload(path)
    edit(statement)
    raw = json.dumps(statement).encode()
    signature = _signature(_load_key(key, "private"), raw)
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(raw).decode()
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    path.write_text(json.dumps(bundle), encoding="utf-8")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"), "does not list files"),
        (lambda s: s["predicate"]["serialization"].update(method="shards"), "does not list files"),
        (lambda s: s["predicate"]["resources"].pop(), "does not list files"),
        (lambda s: s["subject"].append({}), "does not list files"),
        (lambda s: leave_out(s, "weights.py"), "'weights.py' was not signed"),
        (lambda s: s.clear(), "does not list files"),
    ],
)  # fmt: skip
def test_an_incomplete_statement_is_refused(package: Path, keys: tuple[Path, Path], edit: Any, message: str) -> None:
    path = sign(package, keys[0])
    resign(path, keys[0], edit)
    with pytest.raises(PackageError, match=message):
        verify_signature(package, keys[1])


def test_a_signature_replaces_no_file_of_the_package(package: Path, keys: tuple[Path, Path]) -> None:
    with pytest.raises(PackageError, match="inside a package a signature is named"):
        sign(package, keys[0], package / "weights.py")


def test_only_a_verified_package_is_signed(package: Path, keys: tuple[Path, Path]) -> None:
    scale_row(package, "embedding.weight", 5, 2)
    with pytest.raises(PackageError, match="seal or restore it, then sign"):
        sign(package, keys[0])
    assert not signature_path(package).exists()


def test_unsuitable_keys_are_refused(package: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    sign(package, keys[0])
    wide, wide_public = write_key(tmp_path, ec.derive_private_key(5, ec.SECP384R1()), "wide")
    other, other_public = write_key(tmp_path, ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)), "other")
    locked, _ = write_key(tmp_path, ec.derive_private_key(5, ec.SECP256R1()), "locked", b"secret")
    for key, password, message in (
        (wide, None, "not a P-256 key"),
        (other, None, "not a P-256 key"),
        (keys[1], None, "not a private key in PEM form"),
        (tmp_path / "none.pem", None, "cannot be read"),
        (locked, None, "is encrypted"),
        (locked, b"guess", "or the password is wrong"),
        (keys[0], b"secret", "is not encrypted"),
    ):
        with pytest.raises(PackageError, match=message):
            sign(package, key, password=password)
    sign(package, locked, tmp_path / "locked.sig", b"secret")
    for key, message in (
        (wide_public, "not a P-256 key"),
        (other_public, "not a P-256 key"),
        (keys[0], "not a public key in PEM form"),
    ):
        with pytest.raises(PackageError, match=message):
            verify_signature(package, key)


upstream = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("model_signing", "OpenSSL")),
    reason='needs OpenSSF model-signing and pyOpenSSL; pip install "al-qalam[test]"',
)


def model_signing(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command line of OpenSSF model-signing, which does not use our code."""
    command = [sys.executable, "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@upstream
@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("inside", [False, True])
def test_model_signing_verifies_our_signature(package: Path, keys: tuple[Path, Path], inside: bool) -> None:
    path = sign(package, keys[0], package / "model.sig" if inside else None)
    verify = ("verify", "key", package, "--signature", path, "--public_key", keys[1])
    done = model_signing(*verify)
    assert done.returncode == 0, done.stderr
    change(package / "weights.py")
    done = model_signing(*verify)
    assert done.returncode == 1
    assert "Hash mismatch for 'weights.py'" in done.stderr


@upstream
@pytest.mark.usefixtures("processes")
def test_we_verify_a_signature_of_model_signing(package: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "theirs.sig"
    done = model_signing("sign", "key", package, "--private_key", keys[0], "--signature", path)
    assert done.returncode == 0, done.stderr
    assert verify_signature(package, keys[1], path) == verify_signature(package, keys[1], sign(package, keys[0]))
    statement, ours = payload(path), payload(signature_path(package))
    assert statement["subject"] == ours["subject"]
    assert statement["predicate"]["resources"] == ours["predicate"]["resources"]
    change(package / "weights.py")
    with pytest.raises(PackageError, match=r"'weights\.py' is not as signed"):
        verify_signature(package, keys[1], path)


@upstream
@pytest.mark.usefixtures("processes")
def test_model_signing_does_not_see_files_that_a_signature_ignores(package: Path, keys: tuple[Path, Path]) -> None:
    """The reason for our own verifier: a signed statement may exclude files, and upstream then accepts any content."""
    path = sign(package, keys[0])
    resign(path, keys[0], lambda statement: leave_out(statement, "weights.py"))
    change(package / "weights.py")
    done = model_signing("verify", "key", package, "--signature", path, "--public_key", keys[1])
    assert done.returncode == 0, done.stderr
    with pytest.raises(PackageError, match=r"'weights\.py' was not signed"):
        verify_signature(package, keys[1], path)


def test_without_cryptography_the_error_is_one_line(
    package: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    for call in (lambda: sign(package, keys[0]), lambda: verify_signature(package, keys[1])):
        with pytest.raises(PackageError, match="need the package cryptography"):
            call()
