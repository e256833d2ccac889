"""Object storage: reads and writes the objects below a URL such as s3://bucket/prefix, through obstore.

Credentials come from the provider's own chain: environment, configuration files, the machine's role.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

from qalam_core.errors import StoreError

log = logging.getLogger(__name__)

SCHEMES = ("s3", "gs", "az", "abfs")  # of stores; sources may be at http and https addresses, too
_READ_AT_ONCE = 1 << 30  # bytes of a manifest, or a history
_PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds
_CHUNK = 8 << 20  # bytes that are in memory at once
_CURES = {
    "UnauthenticatedError": "no valid credentials; set them in the environment, as the provider's own tools read them",
    "PermissionDeniedError": "access is denied; check the credentials in the environment, and what they may do",
    "UnknownConfigurationKeyError": "a setting in the environment is not known",
    "ValueError": "its address, or a name below it, is not one that objects can have",
    "NotSupportedError": "it does not support this request, such as conditional writes",
}
"""obstore's exception -> the problem."""
_NO_BUCKET = "there is no such bucket; create it, or correct the name"
_STATUSES = {403: _CURES["PermissionDeniedError"], 401: _CURES["UnauthenticatedError"], 404: _NO_BUCKET}
_PASSING = (408, 409, 425, 429)  # statuses of requests that may succeed later


def is_url(place: str | Path) -> bool:
    """Whether a place is the URL of objects, and not a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", str(place)) is not None


def shown(url: str) -> str:
    """A URL without user, password and query, any of which may be a secret."""
    scheme, _, rest = url.partition("://")
    place, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path}"


Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


class UnansweredError(StoreError):
    """A request failed in a way that the next one may not."""


def _repeated(work: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Repeat a method on failures that pass, beyond obstore's own attempts, which do not cover conditional writes and
    answers that break off. Each method may be repeated: doing it twice is the same as doing it once."""

    @wraps(work)
    def repeated(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        for pause in _PAUSES:
            try:
                return work(*args, **kwargs)
            except UnansweredError as error:
                log.warning("%s; trying again in %g s", error, pause)
                time.sleep(pause)
        return work(*args, **kwargs)

    return repeated


NOT_PLAIN = (
    "has a user, a password or a query in its address, which would be recorded; leave them out, and set credentials in "
    "the environment"
)
"""The problem of a URL that differs from what is `shown` of it."""


class Meta(NamedTuple):
    """What is known of an object."""

    size: int  # bytes
    version: str  # ETag
    changed: float  # Unix time


class Objects:
    """The objects below a URL; names are relative to it. All methods raise StoreError when the storage fails."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            import obstore
        except ImportError:
            raise StoreError(f"{shown(url)}: obstore is not installed; run: pip install 'al-qalam[cloud]'") from None
        self._obstore: Any = obstore

    @cached_property
    def _storage(self) -> Any:
        with self._errors():
            plain = {"client_options": {"allow_http": True}} if self.url.startswith("http://") else {}
            return self._obstore.store.from_url(self.url, retry_config={"max_retries": 3}, **plain)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn obstore's errors into one line; never its own text, which may have a signed address."""
        errors = self._obstore.exceptions
        try:
            yield
        except (errors.AlreadyExistsError, errors.PreconditionError):
            raise
        except FileNotFoundError as error:
            if "NoSuchBucket" not in str(error):
                raise FileNotFoundError(shown(self.url)) from None
            raise StoreError(f"{shown(self.url)}: {_NO_BUCKET}") from None
        except (errors.BaseError, ValueError) as error:
            status = int(found[1]) if (found := re.search(r"status code: (\d+)", str(error))) else 0
            missing = re.search(r"(\w+) must be specified", str(error))
            problem = _CURES.get(type(error).__name__) or _STATUSES.get(status, "")
            if missing:
                problem = f"the environment has no setting for {missing[1]}, as the provider's own tools read it"
            elif not problem and 400 <= status < 500 and status not in _PASSING:
                problem = f"it refuses this with status {status}; check the address"
            if problem:
                raise StoreError(f"{shown(self.url)}: {problem}") from None
            failed = f"fails with status {status}" if status else "does not answer"
            raise UnansweredError(f"{shown(self.url)}: it {failed}; check its address and the network") from None

    @_repeated
    def read(self, name: str) -> tuple[bytes, str]:
        """The content of an object, and its version (ETag). Raises FileNotFoundError."""
        with self._errors():
            found = self._obstore.get(self._storage, name)
            if found.meta["size"] > _READ_AT_ONCE:
                raise StoreError(f"{shown(self.url)}/{name}: has more than {_READ_AT_ONCE >> 20} MB; delete it")
            return bytes(found.bytes()), found.meta["e_tag"] or ""

    @_repeated
    def meta(self, name: str) -> Meta:
        """An object's size, version and time. Raises FileNotFoundError."""
        with self._errors():
            return _meta(self._obstore.head(self._storage, name))

    def exists(self, name: str) -> bool:
        """Whether there is such an object."""
        try:
            self.meta(name)
        except FileNotFoundError:
            return False
        return True

    @_repeated
    def write(self, name: str, content: bytes) -> None:
        """Write an object, whatever is there."""
        with self._errors():
            self._obstore.put(self._storage, name, content)

    def create(self, name: str, content: bytes) -> bool:
        """Write an object where there is none; -> whether this content is there now."""
        return self._put(name, content, "create")

    def replace(self, name: str, content: bytes, version: str) -> bool:
        """Write an object where `version` is there; -> whether this content is there now."""
        return self._put(name, content, {"e_tag": version})

    @_repeated
    def _put(self, name: str, content: bytes, mode: Any) -> bool:
        errors = self._obstore.exceptions
        with self._errors():
            try:
                self._obstore.put(self._storage, name, content, mode=mode)
            except (errors.AlreadyExistsError, errors.PreconditionError, FileNotFoundError):
                # a request that was repeated because its answer was lost meets what it has written itself
                with suppress(FileNotFoundError):  # of a version that was deleted
                    return self.read(name)[0] == content
                return False
        return True

    @_repeated
    def upload(self, name: str, path: Path) -> None:
        """Write a file's content as an object, whatever is there."""
        with path.open("rb") as file, self._errors():
            self._obstore.put(self._storage, name, file, chunk_size=_CHUNK)

    @_repeated
    def download(self, name: str, path: Path, size: int | None = None) -> str:
        """Write an object's content to a file; -> its sha256. Raises FileNotFoundError, also for another size."""
        sha256 = hashlib.sha256()
        with path.open("wb") as file:
            for chunk in self.chunks(name, size):
                sha256.update(chunk)
                file.write(chunk)
        return sha256.hexdigest()

    def chunks(self, name: str, size: int | None = None) -> Iterator[bytes]:
        """An object's content, in chunks. Raises FileNotFoundError, also for one of another size."""
        with self._errors():
            found = self._obstore.get(self._storage, name)
            if size not in (None, found.meta["size"]):
                raise FileNotFoundError
            for chunk in found.stream(min_chunk_size=_CHUNK):
                yield bytes(chunk)

    @_repeated
    def below(self, prefix: str) -> dict[str, Meta]:
        """The objects below a prefix, by name, sorted."""
        with self._errors():
            found = {each["path"]: _meta(each) for part in self._obstore.list(self._storage, prefix) for each in part}
        return dict(sorted(found.items()))

    @_repeated
    def folders(self, prefix: str) -> list[str]:
        """The names directly below a prefix that have objects below them, sorted."""
        with self._errors():
            return sorted(
                Path(name).name for name in self._obstore.list_with_delimiter(self._storage, prefix)["common_prefixes"]
            )

    @_repeated
    def delete(self, *names: str) -> None:
        """Delete objects; those that are not there are no error."""
        with self._errors():
            for name in names:
                try:
                    self._obstore.delete(self._storage, name)
                except FileNotFoundError:
                    continue


def _meta(found: Any) -> Meta:
    return Meta(found["size"], found["e_tag"] or "", found["last_modified"].timestamp())
