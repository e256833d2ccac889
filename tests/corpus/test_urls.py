"""Sources at URLs: the same documents as from files, whatever the format; what changes meanwhile; what is wrong."""

from __future__ import annotations

import bz2
import functools
import gzip
import http.server
import json
import lzma
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from qalam_core.corpus.readers import ingest
from qalam_core.corpus.sources import SourceFile, resolve
from qalam_core.digests import Digests
from qalam_core.errors import CorpusError
from qalam_core.files import sha256_bytes
from qalam_core.objects import Objects
from qalam_core.pipeline.build import build
from qalam_core.recipe import Recipe, Source, to_toml
from qalam_core.store import Store
from tests.conftest import sentences, tiny_recipe
from tests.object_storage import SECRET, Server, on, s3_server


@pytest.fixture(scope="module")
def server(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def url(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    on(monkeypatch, tmp_path / "machine", server.port)
    return f"s3://texts/{secrets.token_hex(4)}"


def files(folder: Path) -> dict[str, Path]:
    """One file of each format, plain and compressed."""
    folder.mkdir()
    texts = sentences(30)
    rows = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts).encode()
    made = {"a.txt": "\n".join(texts).encode(), "b.jsonl": rows, "c.json": json.dumps(list(map(_row, texts))).encode()}
    made["d.csv"] = "\n".join(["text", *(f'"{text}"' for text in texts)]).encode()
    made |= {"e.jsonl.gz": gzip.compress(rows), "f.txt.bz2": bz2.compress(made["a.txt"])}
    made |= {"g.txt.xz": lzma.compress(made["a.txt"]), "h.jsonl.zst": zstandard.compress(rows)}
    for name, content in made.items():
        (folder / name).write_bytes(content)
    pq.write_table(pa.table({"text": texts}), folder / "i.parquet")
    return {path.name: path for path in sorted(folder.iterdir())}


def _row(text: str) -> dict[str, str]:
    return {"text": text}


def documents(file: SourceFile, out: Path) -> list[str]:
    ingest(file, out)
    with pa.memory_map(str(out / "documents.arrow")) as mapped:
        texts: list[str] = pa.ipc.open_file(mapped).read_all()["text"].to_pylist()
    assert [path.name for path in out.iterdir()] == ["documents.arrow"], "the copy is gone"
    return texts


@pytest.mark.parametrize("identity", ["content", "version"])
def test_objects_give_the_documents_of_files(url: str, identity: str, tmp_path: Path) -> None:
    made = files(tmp_path / "texts")
    for name, path in made.items():
        Objects(url).upload(f"sub/{name}", path)
    there = resolve([Source(path=f"{url}/sub/", identity=identity)])
    here = resolve([Source(path=str(tmp_path / "texts"))])
    assert [file.path for file in there] == [f"{url}/sub/{name}" for name in made]
    for number, (far, near) in enumerate(zip(there, here, strict=True)):
        assert documents(far, tmp_path / f"far-{number}") == documents(near, tmp_path / f"near-{number}") != []
        assert (far.digest == near.digest) == (identity == "content")
        assert (far.size, far.settings.format) == (near.size, near.settings.format)


def test_which_objects_a_url_names(url: str, caplog: pytest.LogCaptureFixture) -> None:
    objects = Objects(url)
    for name in ("a/one.txt", "a/b/two.txt", "a/.hidden.txt", "a/note.pdf", "ab/three.txt"):
        objects.write(name, "نص قصير هنا\n".encode())

    def named(path: str) -> list[str]:
        return [file.path.removeprefix(f"{url}/") for file in resolve([Source(path=f"{url}/{path}")])]

    assert named("a/") == ["a/b/two.txt", "a/one.txt"]
    assert "1 objects are passed over" in caplog.text
    assert named("a/one.txt") == ["a/one.txt"]
    assert named("a/*.txt") == ["a/b/two.txt", "a/one.txt"]
    assert named("*/one.*") == ["a/one.txt"]
    assert resolve([Source(path=f"{url}/a/")])[0].settings.name == "a"
    assert resolve([Source(path=f"{url}/a/one.txt")])[0].settings.name == "one"
    assert len(resolve([Source(path=f"{url}/a/one.txt"), Source(path=f"{url}/a/")])) == 2, "each object once"


def test_an_object_is_read_again_where_it_may_have_changed(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read, chunks, meta = list[str](), Objects.chunks, Objects.meta

    def counted(objects: Objects, name: str, size: int | None = None) -> Iterator[bytes]:
        read.append(name)
        return chunks(objects, name, size)

    def asked() -> list[str]:
        read.clear()
        found = resolve([Source(path=f"{url}/")], Digests(tmp_path / "known"))
        assert [file.digest for file in found] == [sha256_bytes(objects.read(name)[0]) for name in ("a.txt", "b.txt")]
        return [*read]

    monkeypatch.setattr(Objects, "chunks", counted)
    objects = Objects(url)
    for name in ("a.txt", "b.txt"):
        objects.write(name, f"{name} first".encode())
    assert asked() == asked() == ["a.txt", "b.txt"], "they are too young to be remembered"
    monkeypatch.setattr("qalam_core.digests.SETTLED_SECONDS", 0.0)
    assert asked() == ["a.txt", "b.txt"]
    assert asked() == []
    objects.write("b.txt", b"b.txt later")
    assert asked() == ["b.txt"]
    assert asked() == []
    Digests(tmp_path / "known").doubt()
    assert asked() == ["a.txt", "b.txt"]
    assert not caplog.messages, "nothing changed silently"
    for version in ("", 'W/"1"'):
        with monkeypatch.context() as patch:
            patch.setattr(Objects, "meta", lambda *each, version=version: meta(*each)._replace(version=version))
            assert asked() == ["a.txt", "b.txt"], "no version tells that they are the same"


@pytest.mark.parametrize("identity", ["content", "version"])
def test_an_object_that_changes_during_a_build_is_refused(url: str, identity: str, tmp_path: Path) -> None:
    Objects(url).write("x.txt", "نص أول\n".encode())
    (file,) = resolve([Source(path=f"{url}/x.txt", identity=identity)])
    Objects(url).write("x.txt", "نص آخر\n".encode())
    with pytest.raises(CorpusError, match=r"x\.txt: changed since the build began; run it again"):
        ingest(file, tmp_path / "out")
    (again,) = resolve([Source(path=f"{url}/x.txt", identity=identity)])
    assert again.digest != file.digest
    Objects(url).delete("x.txt")
    with pytest.raises(CorpusError, match=r"x\.txt: no such object"):
        ingest(again, tmp_path / "gone")


def test_mistakes_are_one_line_without_secrets(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Objects(url).write("x.pdf", b"x")
    for path, why in (
        (f"{url}/none.txt", "no such object"),
        (f"{url}/x.pdf", "unknown suffix"),
        (f"{url}/none/", "no object there has a known suffix"),
        ("ftp://host/x.txt", "nothing is read from there"),
        (f"s3://user:{SECRET}@bucket/x.txt", "has a user, a password or a query"),
        (f"https://host/x.txt?signature={SECRET}", "has a user, a password or a query"),
        ("https://host/texts/", "does not list its files"),
    ):
        with pytest.raises(CorpusError, match=why) as refused:
            resolve([Source(path=path)])
        assert SECRET not in str(refused.value)
        assert "\n" not in str(refused.value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"{SECRET}-wrong")
    with pytest.raises(CorpusError, match="access is denied") as denied:
        resolve([Source(path=f"{url}/x.txt")])
    assert SECRET not in str(denied.value)


@pytest.mark.usefixtures("processes")
def test_a_file_on_a_web_server(tmp_path: Path) -> None:
    folder = tmp_path / "www"
    folder.mkdir()
    (folder / "texts.txt").write_text("\n".join(sentences(5)), encoding="utf-8")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        place = f"http://127.0.0.1:{server.server_port}/texts.txt"
        (file,) = resolve([Source(path=place)])
        assert documents(file, tmp_path / "out") == sentences(5)
        with pytest.raises(CorpusError, match="its server tells no version"):
            resolve([Source(path=place, identity="version")])
        with pytest.raises(CorpusError, match="no such object"):
            resolve([Source(path=place.replace("texts", "none"))])
    finally:
        server.shutdown()
        server.server_close()


def test_a_build_from_objects_is_the_build_from_files(url: str, corpus_file: Path, store: Store) -> None:
    Objects(url).upload(corpus_file.name, corpus_file)
    source = {"path": f"{url}/{corpus_file.name}", "name": "stories"}
    far = tiny_recipe(corpus_file, corpus={"sources": [source]}, train={"steps": 20})
    assert Recipe.parse(__import__("tomllib").loads(to_toml(far))) == far
    near = tiny_recipe(corpus_file, train={"steps": 20})
    one, two = build(near, store), build(far, store)
    assert all(artifact.cached for artifact in two.artifacts if artifact.stage not in ("export", "evaluate", "gate"))
    assert one.record.verdict == two.record.verdict
