"""Damaged input is left out by name and counted; too much of it in a source stops the run with one line."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import shutil
import tracemalloc
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from llmcore.artifacts import runner
from llmcore.artifacts.manifest import ArtifactRef, Manifest, manifest_of
from llmcore.artifacts.recipe import StoreFiles, resolve
from llmcore.artifacts.store import open_store
from llmcore.errors import LlmcoreError, UsageError
from llmcore.planning.chain import build
from llmcore.planning.config import check, load
from llmcore.sources import ingest as ingesting
from llmcore.sources import unpack
from llmcore.sources.bad_input import accept
from llmcore.sources.collect import CollectParams, collect, scan
from llmcore.sources.ingest import IngestParams, ingest
from tests.local_files import LocalFiles, LocalRun
from tests.small import small_config
from tests.sources.test_crawl import page, routes
from tests.sources.test_ingest import run_ingest, write_warc

TEXTS = [f"The text number {number}, which is like no other text of the set." for number in range(200)]


@dataclass(frozen=True)
class Ingested:
    """One source, ingested over a store."""

    manifest: Manifest
    files: StoreFiles
    ref: ArtifactRef

    @property
    def texts(self) -> list[str]:
        return list(self.files.table("kept/")["text"])

    @property
    def bad(self) -> list[dict[str, Any]]:
        rows = self.files.table("dropped/").filter(pl.col("reason") == "bad_input")
        return [json.loads(detail) for detail in rows["detail"]]


def ingested(folder: Path, source: Mapping[str, Any], previous: Mapping[str, ArtifactRef] | None = None) -> Ingested:
    """Fetch and ingest the one source of a configuration; `previous` makes it a refresh."""
    config = load(small_config(folder, sources=[{"name": "mine", "licence": "CC0-1.0", **source}]))
    store = open_store(config.store)
    chain = build(config, previous=previous)
    done = dict(chain.pinned)
    for step in chain.until("ingest"):
        done[step.name] = runner.build(store, resolve(store, step, done))
    manifest = manifest_of(store, done["ingest mine"])
    fetched = done["crawl mine" if source["kind"] == "crawl" else "collect mine"]
    return Ingested(manifest, StoreFiles(store, manifest.outputs), fetched)


def files(folder: Path, contents: Mapping[str, bytes]) -> str:
    """Write a source's files; returns their folder."""
    for name, content in contents.items():
        (folder / "corpus" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "corpus" / name).write_bytes(content)
    return "corpus"


def rows(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, codec="zstd", asbytes=True))


def archive(texts: list[str]) -> bytes:
    pages = [(f"http://h/{text[16:20]}", "200 OK", "text/plain", text.encode()) for text in texts]
    return write_warc(pages)


def table(texts: list[str]) -> bytes:
    out = io.BytesIO()
    pl.DataFrame({"text": texts}).write_parquet(out, row_group_size=4)
    return out.getvalue()


class TestASource:
    def test_a_cut_file_among_many_is_left_out_by_its_own_name(self, tmp_path: Path) -> None:
        contents = {f"{number:03d}.txt.gz": gzip.compress(text.encode()) for number, text in enumerate(TEXTS)}
        contents["100.txt.gz"] = contents["100.txt.gz"][:-12]
        made = ingested(tmp_path, {"kind": "text", "path": files(tmp_path, contents)})
        assert made.texts == TEXTS[:100] + TEXTS[101:]
        (told,) = made.bad
        assert (told["file"], told["place"]) == ("100.txt.gz", "the file") and "end" in told["why"]
        assert made.manifest.metrics["bad_records"] == 1

    def test_of_a_cut_stream_every_whole_line_stays(self, tmp_path: Path) -> None:
        contents = {f"part {n}.jsonl.gz": gzip.compress(rows(TEXTS[40 * n : 40 * n + 40])) for n in range(5)}
        contents["part 2.jsonl.gz"] = contents["part 2.jsonl.gz"][:-60]
        made = ingested(tmp_path, {"kind": "jsonl", "path": files(tmp_path, contents)})
        assert set(TEXTS[:80] + TEXTS[120:]) < set(made.texts) < set(TEXTS)
        places = [told["place"].split(" ")[0] for told in made.bad]
        assert places in (["after"], ["line", "after"])

    def test_too_much_is_one_line_and_another_limit_computes_no_shard_again(self, tmp_path: Path) -> None:
        lines = rows(TEXTS).splitlines(keepends=True)
        for number in (30, 60, 90):
            lines[number] = b"[" * 200_000 + b"\n"
        source = {"kind": "jsonl", "path": files(tmp_path, {"a/notes v1.jsonl.gz": gzip.compress(b"".join(lines))})}
        with pytest.raises(LlmcoreError) as caught:
            ingested(tmp_path, source)
        assert str(caught.value) == (
            "source 'mine': 3 of 200 records are damaged (1.50%), first a/notes v1.jsonl.gz, line 31: no JSON object "
            "(nested more than 100 deep); mend it or take it out of the source, or raise the source's bad_input.share "
            "(now 0.01)"
        )
        made = ingested(tmp_path, {**source, "bad_input": {"share": 0.02}})
        assert made.manifest.run["shards_computed"] == 0
        assert [told["place"] for told in made.bad] == ["line 31", "line 61", "line 91"] and len(made.texts) == 197
        with pytest.raises(LlmcoreError, match=r"3 of 200 records .*now 0\)"):
            ingested(tmp_path, {**source, "strict": True})

    def test_strict_stops_at_the_first(self, tmp_path: Path) -> None:
        source = {"kind": "jsonl", "path": files(tmp_path, {"a.jsonl": rows(TEXTS) + b"{\n"}), "strict": True}
        with pytest.raises(LlmcoreError, match=r"^g000-a.jsonl: line 201: no JSON object .*strict: false for 'mine'$"):
            ingested(tmp_path, source)

    def test_is_judged_alike_however_its_files_are_cut(self, tmp_path: Path) -> None:
        lines = rows(TEXTS).splitlines(keepends=True)
        lines[7], lines[150] = b"{\n", b"\xff\n"
        counts = []
        for size in (200, 100, 10):
            folder = tmp_path / str(size)
            parts = {f"{n:03d}.jsonl": b"".join(lines[n : n + size]) for n in range(0, 200, size)}
            made = ingested(folder, {"kind": "jsonl", "path": files(folder, parts), "shard_bytes": 1024})
            metrics = made.manifest.metrics
            counts.append([metrics[name] for name in ("kept", "dropped", "bad_records", "unread_bytes")])
        assert counts == [[198, 2, 2, 0]] * 3

    def test_a_file_of_another_kind_counts_by_its_bytes(self, tmp_path: Path) -> None:
        contents = {"a.jsonl": rows(TEXTS), "b.jsonl": b'{"body": "x", "title": "y"}\n' * 3}
        source = {"kind": "jsonl", "path": files(tmp_path, contents)}
        assert ingested(tmp_path, source).texts == TEXTS
        assert [told["why"].partition(";")[0] for told in ingested(tmp_path, source).bad] == ["no field 'text'"]
        files(tmp_path, {"b.jsonl": b'{"body": "x", "title": "y"}\n' * 300})
        with pytest.raises(
            LlmcoreError, match=r"8,400 of .* bytes cannot be read .*first b.jsonl, line 1: no field 'text'"
        ):
            ingested(tmp_path, source)
        assert ingested(tmp_path, {**source, "bad_input": {"share": 0.5}}).texts == TEXTS

    def test_no_more_is_read_of_a_file_of_another_kind(self, tmp_path: Path) -> None:
        contents = {"a.jsonl": rows(TEXTS), "b.jsonl": b"a,b,c\n" * 5000, "c.jsonl": b'{"body": "x"}\n' * 5000}
        source = {"kind": "jsonl", "path": files(tmp_path, contents), "bad_input": {"share": 1.0}}
        made = ingested(tmp_path, source)
        assert made.texts == TEXTS and len(made.bad) == 1002
        assert made.bad[1000]["why"] == "none of the first 1000 lines is a JSON object; check `kind`"
        assert made.bad[1001]["place"] == "line 1" and made.bad[1001]["unread_bytes"] == 70_000

    def test_a_damaged_table_is_read_around_the_damage(self, tmp_path: Path) -> None:
        whole = table(TEXTS)
        damaged = bytearray(whole)
        damaged[4:40] = bytes(36)  # the first page's header
        contents = {"a.parquet": whole, "b.parquet": bytes(damaged), "c.parquet": whole[:-100], "d.parquet": b""}
        source = {"kind": "parquet", "path": files(tmp_path, contents)}
        with pytest.raises(LlmcoreError, match=r"bytes cannot be read .*, first b.parquet, row \d+: "):
            ingested(tmp_path, source)
        made = ingested(tmp_path, {**source, "bad_input": {"share": 0.9}})
        assert [told["file"].split("-")[1][0] for told in made.bad] == ["b", "c", "d"]
        assert 380 <= len(made.texts) < 400

    def test_a_table_whose_names_are_no_text_is_left_out(self, tmp_path: Path) -> None:
        out = io.BytesIO()
        pl.DataFrame({"text": TEXTS[:9], "source": TEXTS[:9]}).write_parquet(out)
        contents = {"a.parquet": out.getvalue().replace(b"source", b"sour\xe5e"), "b.parquet": table(TEXTS)}
        made = ingested(tmp_path, {"kind": "parquet", "path": files(tmp_path, contents), "bad_input": {"share": 0.9}})
        assert made.texts == TEXTS and [told["file"][:6] for told in made.bad] == ["g000-a"]

    def test_an_archive_of_images_is_no_empty_corpus_beside_others(self, tmp_path: Path) -> None:
        images = write_warc([(f"http://h/{n}.png", "200 OK", "image/png", b"\x89PNG%d" % n) for n in range(5)])
        source = {"kind": "warc", "path": files(tmp_path, {"a.warc.gz": images, "b.warc.gz": archive(TEXTS[:9])})}
        assert ingested(tmp_path, source).texts == TEXTS[:9]
        (tmp_path / "corpus/b.warc.gz").unlink()
        with pytest.raises(
            LlmcoreError, match=r"source 'mine': empty corpus, all 5 documents are unusable \(not_text 5\)"
        ):
            ingested(tmp_path, source)
        files(tmp_path, {"a.warc.gz": b""})
        with pytest.raises(LlmcoreError, match=r"source 'mine': empty corpus, no warc file holds any"):
            ingested(tmp_path, source)

    def test_a_refresh_that_brings_nothing_usable_goes_on(self, tmp_path: Path) -> None:
        source = {"kind": "jsonl", "path": files(tmp_path, {"a.jsonl": rows(TEXTS)})}
        first = ingested(tmp_path, source)
        files(tmp_path, {"b.jsonl": b"{\n"})
        second = ingested(tmp_path, source, {"collect mine": first.ref})
        assert second.texts == TEXTS and [told["file"] for told in second.bad] == ["g001-b.jsonl"]
        files(tmp_path, {"c.jsonl": b"{\n" * 3})
        with pytest.raises(LlmcoreError, match=r"4 of 204 records .* first b.jsonl, line 1"):
            ingested(tmp_path, source, {"collect mine": second.ref})

    def test_a_page_with_large_headers_is_crawled_and_read(self, tmp_path: Path) -> None:
        large = {f"X-Large-{number}": "v" * 16_000 for number in range(3)}
        answers = {"/": page('<a href="/large">x</a>'), "/large": page("Some words.", large)}
        with routes(answers) as (url, host):
            source = {"kind": "crawl", "start_urls": [url], "allow_private_hosts": [host], "sitemap": False}
            made = ingested(tmp_path, source)
        assert len(made.texts) == 2 and "Some words." in made.texts[1] and not made.bad

    def test_the_key_of_before_says_what_took_its_place(self) -> None:
        source = {"kind": "jsonl", "name": "mine", "path": "x", "bad_line": "drop"}
        with pytest.raises(UsageError, match=r"bad_line is gone: .*bad_input.*strict: true"):
            check({"name": "m", "sources": [source]})


def answered(headers: list[tuple[str, str]], body: bytes) -> bytes:
    """A WARC of three pages, the one in the middle with these headers."""
    out = io.BytesIO()
    writer = WARCWriter(out, gzip=True)
    for number in range(3):
        http = StatusAndHeaders("200 OK", headers if number == 1 else [("Content-Type", "text/html")], "HTTP/1.1")
        content = body if number == 1 else b"<p>page %d</p>" % number
        record = writer.create_warc_record(f"http://h/{number}", "response", io.BytesIO(content), http_headers=http)
        writer.write_record(record)
    return out.getvalue()


def chunked(body: bytes) -> bytes:
    return b"3\r\n%b\r\n%x;x=y\r\n%b\r\n0\r\n\r\n" % (body[:3], len(body) - 3, body[3:])


PAGE = "<p>wörter</p>".encode()
GZIP, CHUNKED = ("Content-Encoding", "gzip"), ("Transfer-Encoding", "chunked")
READ: Mapping[str, tuple[list[tuple[str, str]], bytes]] = {
    "no gzip": ([GZIP], PAGE),
    "no br": ([("Content-Encoding", "br")], PAGE),
    "no deflate": ([("Content-Encoding", "deflate")], PAGE),
    "no coding": ([("Content-Encoding", "UTF-8")], PAGE),
    "no chunks": ([CHUNKED], PAGE),
    "x-gzip": ([("Content-Encoding", "x-gzip")], gzip.compress(PAGE)),
    "gzip twice": ([("Content-Encoding", "gzip, gzip")], gzip.compress(gzip.compress(PAGE))),
    "two members": ([GZIP], gzip.compress(PAGE[:5]) + gzip.compress(PAGE[5:])),
    "raw deflate": ([("Content-Encoding", "deflate")], zlib.compress(PAGE, wbits=-15)),
    "chunks of gzip": ([GZIP, CHUNKED], chunked(gzip.compress(PAGE))),
    "large headers": ([("X-Large", "v" * 100_000), ("X-Larger", "v" * 10_000_000)], PAGE),
    "many headers": ([(f"X-{number}", "v") for number in range(5000)], PAGE),
}


class TestAnAnswer:
    HTML = ("Content-Type", "text/html")

    @pytest.mark.parametrize("name", READ)
    def test_with_untrue_or_large_headers_is_read(self, tmp_path: Path, name: str) -> None:
        headers, body = READ[name]
        (tmp_path / "x").write_bytes(answered([self.HTML, *headers], body))
        documents, drops = run_ingest(tmp_path / "x", "warc")
        assert documents["text"].to_list() == ["<p>page 0</p>", "<p>wörter</p>", "<p>page 2</p>"] and drops.is_empty()

    @pytest.mark.parametrize(
        ("headers", "body", "why"),
        [
            ([GZIP], gzip.compress(PAGE * 100)[:-20], "no sound gzip"),
            ([CHUNKED], b"5\r\nabc", "last chunk is cut off"),
            ([CHUNKED], b"3\r\nabc\r\nx", "chunks break off"),
        ],
        ids=["gzip", "last chunk", "chunks"],
    )
    def test_whose_body_breaks_off_costs_its_record_alone(
        self, tmp_path: Path, headers: list[tuple[str, str]], body: bytes, why: str
    ) -> None:
        (tmp_path / "x").write_bytes(answered([self.HTML, *headers], body))
        documents, drops = run_ingest(tmp_path / "x", "warc")
        assert documents["text"].to_list() == ["<p>page 0</p>", "<p>page 2</p>"]
        detail = json.loads(drops["detail"][0])
        assert (
            why in detail["why"] and detail["place"].startswith("record at offset ") and detail["url"] == "http://h/1"
        )

    def test_that_is_no_http_costs_its_record_alone(self, tmp_path: Path) -> None:
        whole = gzip.decompress(archive(TEXTS[:3]))
        second = whole.index(b"HTTP/1.1", whole.index(TEXTS[0].encode()))
        (tmp_path / "x").write_bytes(whole[:second] + b"HTTP*1.1" + whole[second + 8 :])
        documents, drops = run_ingest(tmp_path / "x", "warc")
        assert documents["text"].to_list() == [TEXTS[0], TEXTS[2]]
        assert json.loads(drops["detail"][0])["why"] == "no HTTP status line"


class TestMemory:
    """A small limit stands for the 64 MiB of every day: what is held does not grow with what the bytes unpack to."""

    @pytest.fixture(autouse=True)
    def small_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ingesting, "READ_BYTES", 1 << 20)

    def peak(self, path: Path, kind: str) -> tuple[int, pl.DataFrame]:
        run_ingest(path.parent / "warm", kind, max_document_bytes=1 << 18)  # imports are not counted
        tracemalloc.start()
        try:
            _, drops = run_ingest(path, kind, max_document_bytes=1 << 18)
            return tracemalloc.get_traced_memory()[1], drops
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize("packed", [gzip.compress, lzma.compress, bz2.compress, zstd])
    def test_a_file_that_unpacks_to_much_is_read_to_the_limit_and_no_further(
        self, tmp_path: Path, packed: Callable[[bytes], bytes]
    ) -> None:
        zeros = packed(b"0" * (48 << 20))
        for name, content in (("x", zeros), ("warm", gzip.compress(b"words"))):
            pl.DataFrame({"name": ["a.txt"], "content": [content]}).write_parquet(tmp_path / name)
        peak, drops = self.peak(tmp_path / "x", "text")
        assert drops["reason"].to_list() == ["too_large"] and peak < 12 << 20

    def test_a_long_line_is_passed_over_in_pieces(self, tmp_path: Path) -> None:
        content = b'{"text": "' + b"0" * (48 << 20) + b'"}\n{"text": "last"}\n'
        (tmp_path / "x").write_bytes(gzip.compress(content, 1))
        (tmp_path / "warm").write_bytes(gzip.compress(b'{"text": "a"}\n'))
        peak, drops = self.peak(tmp_path / "x", "jsonl")
        assert peak < 12 << 20 and json.loads(drops["detail"][0])["line"] == 1
        assert run_ingest(tmp_path / "x", "jsonl", max_document_bytes=1 << 18)[0]["text"].to_list() == ["last"]

    def test_an_xz_file_that_asks_for_a_vast_dictionary_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(unpack, "XZ_BYTES", 1 << 20)
        vast = lzma.compress(b"words " * 1000, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 22}])
        small = lzma.compress(b"words " * 1000, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 16}])
        sources = {"name": ["a.txt.xz", "b.txt.xz"], "content": [vast, small]}
        pl.DataFrame(sources).write_parquet(tmp_path / "x")
        documents, drops = run_ingest(tmp_path / "x", "text")
        assert documents["text"].to_list() == ["words " * 1000] and drops["reason"].to_list() == ["bad_input"]


MAKERS: Mapping[str, tuple[str, Callable[[list[str]], bytes]]] = {
    "a.warc.gz": ("warc", archive),
    "a.warc": ("warc", lambda texts: gzip.decompress(archive(texts))),
    "a.jsonl": ("jsonl", rows),
    "a.jsonl.gz": ("jsonl", lambda texts: gzip.compress(rows(texts))),
    "a.jsonl.xz": ("jsonl", lambda texts: lzma.compress(rows(texts))),
    "a.jsonl.bz2": ("jsonl", lambda texts: bz2.compress(rows(texts))),
    "a.jsonl.zst": ("jsonl", lambda texts: zstd(rows(texts))),
    "a.parquet": ("parquet", table),
    "a.txt": ("text", lambda texts: "\n".join(texts).encode()),
    "a.html.gz": ("html", lambda texts: gzip.compress(f"<p>{texts[0]}</p>".encode())),
    "a.txt.xz": ("text", lambda texts: lzma.compress(texts[0].encode())),
    "a.txt.zst": ("text", lambda texts: zstd(texts[0].encode())),
}


@st.composite
def corrupted(draw: st.DrawFn, content: bytes) -> bytes:
    """The same with bytes changed, taken out, put in, or cut off."""
    place = draw(st.integers(0, max(0, len(content) - 1)))
    length = draw(st.integers(1, 40))
    some = draw(st.binary(min_size=1, max_size=40))
    kind = draw(st.sampled_from(["flip", "cut", "remove", "insert", "zeros", "twice"]))
    return {
        "flip": content[:place] + bytes([content[place] ^ (1 << draw(st.integers(0, 7)))]) + content[place + 1 :],
        "cut": content[:place],
        "remove": content[:place] + content[place + length :],
        "insert": content[:place] + some + content[place:],
        "zeros": content[:place] + bytes(length) + content[place + length :],
        "twice": content[:place] + content[place : place + length] + content[place:],
    }[kind]


@pytest.mark.parametrize("name", MAKERS)
def test_any_corruption_of_a_file_leaves_the_others_as_they_are(name: str, tmp_path: Path) -> None:
    kind, make = MAKERS[name]
    first, sound = (
        make(TEXTS[:20]),
        {f"{letter}{name[1:]}": make(TEXTS[n : n + 20]) for n, letter in ((20, "b"), (40, "c"))},
    )
    expected, _ = read_all(tmp_path / "sound", kind, sound)

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(corrupted(first))
    def holds(content: bytes) -> None:
        found, refused = read_all(tmp_path / "work", kind, {name: content, **sound})
        assert [document for document in found if document[0] in dict(expected)] == expected
        assert refused is None or "\n" not in refused

    holds()


def read_all(folder: Path, kind: str, contents: Mapping[str, bytes]) -> tuple[list[tuple[str, str]], str | None]:
    """(raw file or document's name, text) of every document, and what was said where the source was refused."""
    shutil.rmtree(folder, ignore_errors=True)
    files(folder, contents)
    found, paths = scan(kind, str(folder / "corpus"))
    run = LocalRun(folder / "run", outside={"paths": paths})
    collect({}, CollectParams(name="mine", kind=kind, files=found), run)
    raw, made = LocalFiles(run.out), LocalFiles(folder / "made")
    params = IngestParams(source="mine", kind=kind)
    documents: list[tuple[str, str]] = []
    metrics: dict[str, float] = {}
    for name in raw.names("raw/"):
        shard = Path(name).name
        result = ingest(raw.path(name), params, shard=shard)
        kept, drops = result.outputs["kept"], result.outputs["dropped"]
        assert not isinstance(kept, pl.DataFrame) and isinstance(drops, pl.DataFrame)
        for frame in kept:
            places = frame["url"] if kind in ("text", "html") else [shard] * frame.height
            documents += zip(places, frame["text"], strict=True)
        (folder / "made/dropped").mkdir(parents=True, exist_ok=True)
        drops.write_parquet(folder / "made/dropped" / f"{shard}.parquet")
        for metric, value in result.metrics.items():
            metrics[metric] = metrics.get(metric, 0) + value
    try:
        accept(made, raw, params, metrics)
    except LlmcoreError as error:
        return documents, str(error)
    return documents, None


ARCHIVE = archive(TEXTS[:12])  # once, because its records have random names


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_flipped_byte_in_an_archive_costs_one_record(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    packed = data.draw(st.booleans())
    content = bytearray(ARCHIVE if packed else gzip.decompress(ARCHIVE))
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.mktemp("flip") / "x"
    path.write_bytes(bytes(content))
    documents, drops = run_ingest(path, "warc")
    assert len(set(TEXTS[:12]) - set(documents["text"])) <= (1 if packed else 2)
    if packed:
        assert set(documents["text"]) <= set(TEXTS[:12]), "what a checksum covers is never taken in damaged"
        assert len(documents) + len(drops) == 12 or len(documents) == 12
