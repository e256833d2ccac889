"""Signs a package with a local P-256 key in PEM form, and verifies signatures, without the network.

The bundle is that of OpenSSF model-signing: sigstore's v0.3 JSON with a DSSE envelope around an in-toto statement
(predicate https://model_signing/signature/v1.0), which lists every file with its sha256. That format excludes files
whose names begin with `.git`; `.gitattributes` is covered by manifest.json, which is signed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qalam_core.errors import PackageError
from qalam_core.files import json_object, read_bytes, replace_file, sha256_file
from qalam_core.package.bytecode import is_own_cache
from qalam_core.package.read import changes, read

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

INSIDE = "model.sig"
_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_GIT = (".git", ".gitattributes", ".github", ".gitignore")
_SIZE_LIMIT = 16 << 20
_CURVE = "secp256r1"
_NO_CRYPTOGRAPHY = 'signatures need the package cryptography; pip install "al-qalam[sign]"'
_MAKE_ONE = "make one with: openssl ecparam -name prime256v1 -genkey -noout -out key.pem"
_MAKE_PUBLIC = "extract it with: openssl ec -in key.pem -pubout -out key.pub"


def signature_path(folder: Path) -> Path:
    """The default path of a package's signature: beside it, as my_model.sig."""
    folder = Path(folder).resolve()
    return folder.with_name(f"{folder.name}.sig")


def sign(folder: Path, private_key: Path, out: Path | None = None, password: bytes | None = None) -> Path:
    """Sign a package without changes since export; -> the path of the signature.

    The same package, folder name and key give the same bytes if OpenSSL supports deterministic ECDSA (3.2 and later).
    """
    folder, out = Path(folder), signature_path(folder) if out is None else Path(out)
    package = read(folder)
    if package.unlisted:
        raise PackageError(f"{folder}: {package.unlisted[0]} is not part of the package; delete it, then sign")
    if changed := changes(package):
        raise PackageError(f"{folder}: {changed[0]}; seal or restore it, then sign")
    key = _load_key(private_key, "private", password)
    ignored = [*_GIT, *_inside(folder, out)]
    names = sorted(path.name for path in folder.iterdir() if path.name not in (*ignored, "__pycache__"))
    digests = {name: sha256_file(folder / name) for name in names}
    payload = json.dumps(_statement(folder.resolve().name, digests, ignored), indent=2).encode()
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
        raise PackageError(f"{out}: cannot be written ({error.strerror}); use another path") from None
    return out


def verify_signature(folder: Path, public_key: Path, signature: Path | None = None) -> str:
    """Check that every file is as signed by the owner of the key; -> the key's sha256.

    Raises PackageError, one line, for a signature by another key and for any file that differs, is missing or was not
    signed; `__pycache__` may contain only this interpreter's own compilations of signed files. The content of the
    package is not checked; `verify` does that.
    """
    folder = Path(folder)
    path = signature_path(folder) if signature is None else Path(signature)
    key = _load_key(public_key, "public")
    payload = _checked_payload(_json(path, _small(path)), key, path)
    signed = _resources(_json(path, payload), path)
    if not folder.is_dir() or folder.is_symlink():
        raise PackageError(f"{folder}: not a folder, so not a package")
    found = _files(folder, {".git", *_inside(folder, path)})
    for name in sorted(signed.keys() - found.keys()):
        raise PackageError(f"{folder}: {name!a} was signed and is missing; restore it")
    expected = {**_unsigned(folder, found), **signed}
    for name, file in found.items():
        if name in expected:
            if sha256_file(file) != expected[name]:
                raise PackageError(f"{folder}: {name!a} is not as signed; restore it, or sign the package again")
        elif not _own_cache(folder, name, signed):
            raise PackageError(f"{folder}: {name!a} was not signed; delete it, or sign the package again")
    return _hint(key)


def _statement(name: str, digests: dict[str, str], ignored: list[str]) -> dict[str, Any]:
    method = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": ignored}
    resources = [{"name": name, "algorithm": "sha256", "digest": digest} for name, digest in digests.items()]
    return {
        "_type": _STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": _root(resources)}}],
        "predicateType": _PREDICATE,
        "predicate": {"serialization": method, "resources": resources},
    }


def _root(resources: list[dict[str, str]]) -> str:
    """The digest of all files together: sha256 of their digests."""
    return hashlib.sha256(b"".join(bytes.fromhex(resource["digest"]) for resource in resources)).hexdigest()


def _inside(folder: Path, signature: Path) -> list[str]:
    """The signature's own name if it is inside the package, where only one name is allowed."""
    if not signature.resolve().is_relative_to(folder.resolve()):
        return []
    if signature.resolve() != folder.resolve() / INSIDE:
        raise PackageError(f"{signature}: inside a package a signature is named {INSIDE}; use that name")
    return [INSIDE]


def _authenticated(payload: bytes) -> bytes:
    """The bytes that are signed: DSSE's pre-authentication encoding of the payload and its type."""
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
    """The statement in a bundle, after its signature was verified."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.hashes import SHA256

    try:
        envelope = bundle["dsseEnvelope"]
        (signature,) = envelope["signatures"]
        hint = bundle["verificationMaterial"]["publicKey"].get("hint")
        payload = base64.b64decode(envelope["payload"], validate=True)
        raw = base64.b64decode(signature["sig"], validate=True)
        kind = bundle["mediaType"], envelope["payloadType"]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise PackageError(f"{path}: not a signature made with a key; sign the package again") from None
    if kind != (_MEDIA_TYPE, _PAYLOAD_TYPE):
        raise PackageError(f"{path}: a bundle of another kind ({str(kind[0])[:80]!a}); sign the package again")
    if hint and hint != _hint(key):
        raise PackageError(f"{path}: signed with another key; get the right public key from the signer")
    try:
        key.verify(raw, _authenticated(payload), ECDSA(SHA256()))
    except InvalidSignature:
        raise PackageError(f"{path}: this key did not make this signature; the file was changed") from None
    return payload


def _resources(statement: Any, path: Path) -> dict[str, str]:
    """File -> sha256, from a statement whose signature was verified."""
    try:
        (subject,) = statement["subject"]
        resources, method = statement["predicate"]["resources"], statement["predicate"]["serialization"]
        signed = {resource["name"]: resource["digest"] for resource in resources}
        valid = (
            (statement["_type"], statement["predicateType"]) == (_STATEMENT, _PREDICATE)
            and (method["method"], method["hash_type"]) == ("files", "sha256")
            and all(resource["algorithm"] == "sha256" for resource in resources)
            and len(signed) == len(resources)
            and _root(resources) == subject["digest"]["sha256"]
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        valid = False
    if not valid:
        raise PackageError(f"{path}: does not list files by sha256; sign the package again, file by file")
    return signed


def _files(folder: Path, ignored: set[str]) -> dict[str, Path]:
    """Relative name -> path of every file below a folder, except what signatures do not cover; links are refused."""
    found: dict[str, Path] = {}
    todo = [folder]
    while todo:
        for path in sorted(todo.pop().iterdir()):
            name, mode = path.relative_to(folder).as_posix(), path.lstat().st_mode
            if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
                raise PackageError(f"{folder}: {name!a} is a link or not a regular file; delete it")
            if name in ignored:
                continue
            if stat.S_ISDIR(mode):
                todo.append(path)
            else:
                found[name] = path
    return found


def _unsigned(folder: Path, found: dict[str, Path]) -> dict[str, str]:
    """The digest of .gitattributes, from the signed manifest."""
    if "manifest.json" not in found:
        raise PackageError(f"{folder}: no manifest.json, so not a package, or an incomplete one")
    files = _json(found["manifest.json"], _small(found["manifest.json"])).get("files")
    digest = files.get(".gitattributes") if isinstance(files, dict) else None
    return {".gitattributes": digest} if isinstance(digest, str) else {}


def _own_cache(folder: Path, name: str, signed: dict[str, str]) -> bool:
    cache = folder / name
    source = f"{cache.name.partition('.')[0]}.py"
    return name == f"__pycache__/{cache.name}" and source in signed and is_own_cache(cache, folder / source)


def _small(path: Path) -> bytes:
    try:
        return read_bytes(path, _SIZE_LIMIT)
    except OSError as error:
        raise PackageError(f"{path}: cannot be read ({error.strerror}); does it exist?") from None
    except ValueError as error:
        raise PackageError(f"{path}: {error}, the limit for such files") from None


def _json(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        return json_object(raw)
    except ValueError as error:
        raise PackageError(f"{path}: {error}; the file was cut off, or is not a signature or a manifest") from None


def _load_key(path: Path, kind: Literal["private", "public"], password: bytes | None = None) -> Any:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
    except ImportError:
        raise PackageError(_NO_CRYPTOGRAPHY) from None
    raw, cure = _small(Path(path)), _MAKE_PUBLIC if kind == "public" else _MAKE_ONE
    try:
        key = load_pem_public_key(raw) if kind == "public" else load_pem_private_key(raw, password)
    except TypeError:
        encrypted = "is encrypted; decrypt it with `openssl pkey`, or give its password to qalam_core.sign"
        reason = encrypted if password is None else "is not encrypted; give no password"
        raise PackageError(f"{path}: the key {reason}") from None
    except (ValueError, UnsupportedAlgorithm):
        wrong = "" if password is None else ", or the password is wrong"
        raise PackageError(f"{path}: not a {kind} key in PEM form{wrong}; {cure}") from None
    if not isinstance(key, (EllipticCurvePrivateKey, EllipticCurvePublicKey)) or key.curve.name != _CURVE:
        raise PackageError(f"{path}: not a P-256 key; {cure}")
    return key


def _hint(key: EllipticCurvePublicKey) -> str:
    """The id of a key in model-signing: sha256 of its PEM form."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
