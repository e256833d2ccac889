"""Signs a package with a local key, and checks such a signature, in the bundle format of OpenSSF model-signing.
Takes a package folder and a PEM key (elliptic curve P-256), gives or reads one JSON file; never the network.
It does not know who owns a key: whoever verifies must have the public key from somewhere they trust.

The bundle is sigstore's v0.3 JSON with a DSSE envelope around an in-toto statement (predicate
https://model_signing/signature/v1.0), which lists every file with its sha256. That format leaves files whose
names begin with `.git` to git; `.gitattributes` is held by manifest.json, which is signed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qalam_core.errors import PackageError
from qalam_core.files import replace_file, sha256_file
from qalam_core.package.bytecode import is_own_cache
from qalam_core.package.read import verify

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

__all__ = ["sign", "signature_path", "verify_signature"]

INSIDE = "model.sig"
_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_GIT = (".git", ".gitattributes", ".github", ".gitignore")
_SIZE_LIMIT = 16 << 20
_CURVE = "secp256r1"


def signature_path(folder: Path) -> Path:
    """Where a package's signature lies unless somebody said otherwise: beside it, as my_model.sig."""
    folder = Path(folder).resolve()
    return folder.with_name(f"{folder.name}.sig")


def sign(folder: Path, private_key: Path, out: Path | None = None, password: bytes | None = None) -> Path:
    """Sign a package that verifies, with the PEM key in a file; the path of the signature.

    The same package, folder name and key give the same bytes wherever OpenSSL can sign so (3.2 and later).
    """
    folder, out = Path(folder), signature_path(folder) if out is None else Path(out)
    if changes := verify(folder):
        raise PackageError(f"{folder}: {changes[0]}; seal or restore it, then sign")
    key = _private_key(private_key, password)
    left_out = [*_GIT, *_inside(folder, out)]
    names = sorted(path.name for path in folder.iterdir() if path.name not in (*left_out, "__pycache__"))
    digests = {name: sha256_file(folder / name) for name in names}
    payload = json.dumps(_statement(folder.resolve().name, digests, left_out), indent=2).encode()
    bundle = {
        "mediaType": _MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": _hint(key.public_key())}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": _PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(_signature(key, payload)).decode(), "keyid": ""}],
        },
    }
    try:
        replace_file(out, (json.dumps(bundle) + "\n").encode())
    except OSError as error:
        raise PackageError(f"{out}: cannot be written ({error.strerror}); name another file") from None
    return out


def verify_signature(folder: Path, public_key: Path, signature: Path | None = None) -> str:
    """Check that the package is, file by file, what the owner of the key signed; the key's sha256 when it is.

    Raises PackageError, one line, on a signature of another key and on any file that differs, is missing, or
    was not signed; of `__pycache__` only this interpreter's own compilations of signed files may be there.
    What the files mean is for `verify` to say.
    """
    folder = Path(folder)
    path = signature_path(folder) if signature is None else Path(signature)
    key = _public_key(public_key)
    payload = _checked_payload(_json(path, _small(path)), key, path)
    signed = _resources(_json(path, payload), path)
    if not folder.is_dir() or folder.is_symlink():
        raise PackageError(f"{folder}: not a folder; a package is one")
    found = _files(folder, {".git", *_inside(folder, path)})
    for name in sorted(signed.keys() - found.keys()):
        raise PackageError(f"{folder}: {name!a} was signed and is missing; restore it")
    held = {**_held(folder, found), **signed}
    for name, file in found.items():
        if name in held:
            if sha256_file(file) != held[name]:
                raise PackageError(f"{folder}: {name!a} is not as signed; restore it, or have it signed again")
        elif not _own_cache(folder, name, signed):
            raise PackageError(f"{folder}: {name!a} was not signed; delete it, or have it signed")
    return _hint(key)


def _statement(name: str, digests: dict[str, str], left_out: list[str]) -> dict[str, Any]:
    root = hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests.values())).hexdigest()
    return {
        "_type": _STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": root}}],
        "predicateType": _PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": left_out,
            },
            "resources": [
                {"name": name, "algorithm": "sha256", "digest": digest} for name, digest in digests.items()
            ],
        },
    }  # fmt: skip


def _inside(folder: Path, signature: Path) -> list[str]:
    """The signature's own name where it lies in the package, which can be one place only."""
    if not signature.resolve().is_relative_to(folder.resolve()):
        return []
    if signature.resolve() != folder.resolve() / INSIDE:
        raise PackageError(f"{signature}: inside a package a signature is named {INSIDE}; put it there or beside")
    return [INSIDE]


def _authenticated(payload: bytes) -> bytes:
    """What is signed: the payload and its type, each after its length (DSSE's PAE)."""
    return b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode(), len(payload), payload)


def _signature(key: EllipticCurvePrivateKey, payload: bytes) -> bytes:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.hashes import SHA256

    message = _authenticated(payload)
    try:
        return key.sign(message, ECDSA(SHA256(), deterministic_signing=True))
    except UnsupportedAlgorithm:
        return key.sign(message, ECDSA(SHA256()))


def _checked_payload(bundle: Any, key: EllipticCurvePublicKey, path: Path) -> bytes:
    """The statement inside a bundle, once the key vouches for it."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.hashes import SHA256

    try:
        envelope = bundle["dsseEnvelope"]
        (signature,) = envelope["signatures"]
        hint = bundle["verificationMaterial"]["publicKey"].get("hint")
        payload = base64.b64decode(envelope["payload"], validate=True)
        raw = base64.b64decode(signature["sig"], validate=True)
        known = bundle["mediaType"], envelope["payloadType"]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise PackageError(f"{path}: not a signature made with a key; sign the package again") from None
    if known != (_MEDIA_TYPE, _PAYLOAD_TYPE):
        raise PackageError(f"{path}: a bundle of another kind ({str(known[0])[:80]!a}); sign the package again")
    if hint and hint != _hint(key):
        raise PackageError(f"{path}: signed with another key than this one; ask the signer for theirs")
    try:
        key.verify(raw, _authenticated(payload), ECDSA(SHA256()))
    except InvalidSignature:
        raise PackageError(f"{path}: the key did not make this signature; the file was changed") from None
    return payload


def _resources(statement: Any, path: Path) -> dict[str, str]:
    """File -> sha256, of a statement that the key vouches for."""
    try:
        (subject,) = statement["subject"]
        predicate = statement["predicate"]
        method = predicate["serialization"]
        signed = {resource["name"]: resource["digest"] for resource in predicate["resources"]}
        root = hashlib.sha256(b"".join(bytes.fromhex(resource["digest"]) for resource in predicate["resources"]))
        sound = (
            (statement["_type"], statement["predicateType"]) == (_STATEMENT, _PREDICATE)
            and (method["method"], method["hash_type"]) == ("files", "sha256")
            and all(resource["algorithm"] == "sha256" for resource in predicate["resources"])
            and len(signed) == len(predicate["resources"])
            and root.hexdigest() == subject["digest"]["sha256"]
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        sound = False
    if not sound:
        raise PackageError(f"{path}: does not list files by sha256; sign the package again, file by file")
    return signed


def _files(folder: Path, left_out: set[str]) -> dict[str, Path]:
    """Every file below a folder by its name from there, but for what no signature covers; links are refused."""
    found: dict[str, Path] = {}
    todo = [folder]
    while todo:
        for path in sorted(todo.pop().iterdir()):
            name = path.relative_to(folder).as_posix()
            mode = path.lstat().st_mode
            if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
                raise PackageError(f"{folder}: {name!a} is a link or no file at all; delete it")
            if name in left_out:
                continue
            if stat.S_ISDIR(mode):
                todo.append(path)
            else:
                found[name] = path
    return found


def _held(folder: Path, found: dict[str, Path]) -> dict[str, str]:
    """The digest of .gitattributes, which the signed manifest knows."""
    if "manifest.json" not in found:
        raise PackageError(f"{folder}: no manifest.json; this is not a package of Al-Qalam, or half of one")
    manifest = _json(found["manifest.json"], _small(found["manifest.json"]))
    files = manifest.get("files", {}) if isinstance(manifest, dict) else {}
    digest = files.get(".gitattributes") if isinstance(files, dict) else None
    return {".gitattributes": digest} if isinstance(digest, str) else {}


def _own_cache(folder: Path, name: str, signed: dict[str, str]) -> bool:
    cache = folder / name
    source = f"{cache.name.partition('.')[0]}.py"
    return name == f"__pycache__/{cache.name}" and source in signed and is_own_cache(cache, folder / source)


def _small(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(_SIZE_LIMIT + 1)
    except OSError as error:
        raise PackageError(f"{path}: cannot be read ({error.strerror}); is it there?") from None
    if len(raw) > _SIZE_LIMIT:
        raise PackageError(f"{path}: larger than {_SIZE_LIMIT} bytes, which no such file is")
    return raw


def _json(path: Path, raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise PackageError(f"{path}: not valid JSON; the file was cut off or is another one") from None


def _private_key(path: Path, password: bytes | None) -> EllipticCurvePrivateKey:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError:
        raise PackageError(_NO_CRYPTOGRAPHY) from None
    try:
        key = load_pem_private_key(_small(Path(path)), password)
    except TypeError:
        reason = "is locked with a password; give it" if password is None else "has no password; give none"
        raise PackageError(f"{path}: the key {reason}") from None
    except (ValueError, UnsupportedAlgorithm):
        wrong = "" if password is None else ", or the password is wrong"
        raise PackageError(f"{path}: not a private key in PEM form{wrong}; {_MAKE_ONE}") from None
    if not isinstance(key, EllipticCurvePrivateKey) or key.curve.name != _CURVE:
        raise PackageError(f"{path}: not a key of the curve P-256; {_MAKE_ONE}")
    return key


def _public_key(path: Path) -> EllipticCurvePublicKey:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError:
        raise PackageError(_NO_CRYPTOGRAPHY) from None
    try:
        key = load_pem_public_key(_small(Path(path)))
    except (ValueError, UnsupportedAlgorithm):
        raise PackageError(f"{path}: not a public key in PEM form; {_MAKE_PUBLIC}") from None
    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name != _CURVE:
        raise PackageError(f"{path}: not a key of the curve P-256; {_MAKE_PUBLIC}")
    return key


def _hint(key: EllipticCurvePublicKey) -> str:
    """The name model-signing gives a key: sha256 of its PEM form."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


_NO_CRYPTOGRAPHY = 'signatures need the package cryptography; pip install "al-qalam[sign]"'
_MAKE_ONE = "make one with: openssl ecparam -name prime256v1 -genkey -noout -out key.pem"
_MAKE_PUBLIC = "take it from the private one with: openssl ec -in key.pem -pubout -out key.pub"
