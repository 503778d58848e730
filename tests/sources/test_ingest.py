"""Ingest: every format in, one schema out; damage is one clear line; nothing is lost."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moto import mock_aws
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from llmcore.artifacts.keys import file_digest
from llmcore.errors import LlmcoreError, UsageError
from llmcore.quickstart import bundled
from llmcore.schema import DOCUMENT_SCHEMA, check_documents, document_id, dropped
from llmcore.sources import collect as collecting
from llmcore.sources import ingest as ingesting
from llmcore.sources.collect import CollectParams, collect, flat, scan
from llmcore.sources.encodings import decode
from llmcore.sources.ingest import STAGE, IngestParams, ingest, sound_text
from tests.local_files import LocalFiles, LocalRun


def run_ingest(raw: Path, kind: str, shard: str = "g000-x", **params: Any) -> tuple[pl.DataFrame, pl.DataFrame]:
    result = ingest(raw, IngestParams(source="test", kind=kind, **params), shard=shard)
    kept = result.outputs["kept"]
    assert not isinstance(kept, pl.DataFrame)
    drops = result.outputs["dropped"]
    assert isinstance(drops, pl.DataFrame)
    documents = check_documents(pl.concat(kept), shard)
    assert result.metrics["kept"] == len(documents) and result.metrics["dropped"] == len(drops)
    return documents, drops


def write_warc(pages: list[tuple[str, str, str, bytes]], kind: str = "response") -> bytes:
    """(url, status, content type, body) as a WARC."""
    out = io.BytesIO()
    writer = WARCWriter(out, gzip=True, warc_version="WARC/1.1")
    for url, status, content_type, body in pages:
        headers = StatusAndHeaders(status, [("Content-Type", content_type)], protocol="HTTP/1.1")
        dates = {"WARC-Date": "2026-02-03T04:05:06Z"}
        writer.write_record(
            writer.create_warc_record(
                url, kind, payload=io.BytesIO(body), http_headers=headers, warc_headers_dict=dates
            )
        )
    return out.getvalue()


class TestWarc:
    def test_the_bundled_archive_becomes_documents_and_reasons(self) -> None:
        documents, drops = run_ingest(bundled("archive.warc.gz"), "warc", licence="Apache-2.0")
        assert (len(documents), len(drops)) == (30, 3)
        assert drops["reason"].to_list() == ["status", "status", "not_text"]
        assert json.loads(drops["detail"][0]) == {"status": 404, "url": "http://mirror.example/httpd/en/missing.html"}
        assert documents["fetched_at"].unique().to_list() == [datetime(2026, 1, 15, 12, tzinfo=UTC)]
        assert documents["text"].str.starts_with("<!DOCTYPE").all()
        assert documents["id"].n_unique() == 30

    @pytest.mark.parametrize("cut", [-30, -2000, 90_000, 60_001])
    def test_a_file_cut_off_is_one_line_that_names_the_offset(self, tmp_path: Path, cut: int) -> None:
        path = tmp_path / "cut.warc.gz"
        path.write_bytes(bundled("archive.warc.gz").read_bytes()[:cut])
        with pytest.raises(LlmcoreError, match=r"^g000-x: record at offset \d+: .*; mend it") as caught:
            run_ingest(path, "warc", strict=True)
        assert "\n" not in str(caught.value)

    def test_a_file_cut_off_anywhere_is_never_taken_for_whole(self, tmp_path: Path) -> None:
        whole = write_warc([(f"http://h/{n}", "200 OK", "text/html", b"<p>page %d</p>" % n) for n in range(2)])
        plain = gzip.decompress(whole)
        for content in (whole, plain):
            second = 0
            for cut in range(1, len(content) - 4):
                path = tmp_path / "cut.warc"
                path.write_bytes(content[:cut])
                documents, drops = run_ingest(path, "warc")
                assert documents["url"].to_list() in ([], ["http://h/0"])
                if drops.is_empty():
                    assert len(documents) == 1, cut  # cut exactly between two records: a whole, shorter file
                    second += 1
                else:
                    assert drops["reason"].to_list() == ["bad_input"]
            assert second <= 5

    def test_a_flipped_byte_and_another_format_are_named(self, tmp_path: Path) -> None:
        damaged = bytearray(bundled("archive.warc.gz").read_bytes())
        damaged[90_000] ^= 255
        for content, where in (
            (bytes(damaged), r"record at offset \d{4,}:"),
            (b"hello\n" * 100, "record at offset 0:"),
        ):
            (tmp_path / "x").write_bytes(content)
            with pytest.raises(LlmcoreError, match=where):
                run_ingest(tmp_path / "x", "warc", strict=True)

    def test_encodings_are_told_by_http_by_the_page_or_by_their_bytes(self, tmp_path: Path) -> None:
        korean = "<html><head><meta charset=EUC-KR></head><body>주소와 포트 지정</body></html>"
        turkish = "<html><body>Türkçe belgeler, ğüşiöç ve İstanbul'da bir gün</body></html>"
        pages = [
            ("http://h/1", "200 OK", "text/html", korean.encode("euc-kr")),
            ("http://h/2", "200 OK", "text/html; charset=ISO-8859-9", turkish.encode("iso-8859-9")),
            ("http://h/3", "200 OK", "text/html; charset=EUC-KR", turkish.encode("utf-8")),
            ("http://h/4", "200 OK", "text/html; charset=nonsense", turkish.encode("utf-8-sig")),
        ]
        (tmp_path / "x").write_bytes(write_warc(pages))
        documents, _ = run_ingest(tmp_path / "x", "warc")
        assert documents["text"].to_list() == [korean, turkish, turkish, turkish]

    @given(st.lists(st.binary(max_size=300), min_size=1, max_size=5))
    def test_any_body_comes_through_or_is_dropped(
        self, tmp_path_factory: pytest.TempPathFactory, bodies: list[bytes]
    ) -> None:
        path = tmp_path_factory.mktemp("warc") / "x"
        path.write_bytes(write_warc([(f"http://h/{n}", "200 OK", "text/html", body) for n, body in enumerate(bodies)]))
        documents, drops = run_ingest(path, "warc", shard="g001-x")
        assert len(documents) + len(drops) == len(bodies)
        texts = [sound_text(decode(body, html=True)) for body in bodies]
        assert documents["text"].to_list() == [text for text in texts if text and not text.isspace()]

    def test_a_compressed_body_is_unpacked(self, tmp_path: Path) -> None:
        out = io.BytesIO()
        writer = WARCWriter(out, gzip=True)
        headers = [("Content-Type", "text/html"), ("Content-Encoding", "gzip")]
        writer.write_record(
            writer.create_warc_record(
                "http://h/z",
                "response",
                payload=io.BytesIO(gzip.compress(b"<p>packed</p>")),
                http_headers=StatusAndHeaders("200 OK", headers, protocol="HTTP/1.1"),
            )
        )
        (tmp_path / "x").write_bytes(out.getvalue())
        assert run_ingest(tmp_path / "x", "warc")[0]["text"].to_list() == ["<p>packed</p>"]

    def test_vast_records_and_bombs_are_refused_unread(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        large = os.urandom(3_000_000).hex().encode()
        (tmp_path / "x").write_bytes(
            write_warc(
                [("http://h/a", "200 OK", "text/plain", large), ("http://h/b", "200 OK", "text/plain", b"small")]
            )
        )
        assert run_ingest(tmp_path / "x", "warc")[0]["text"].to_list() == [large.decode(), "small"]
        monkeypatch.setattr(ingesting, "READ_BYTES", 5_000_000)
        documents, drops = run_ingest(tmp_path / "x", "warc", max_document_bytes=1_000_000)
        assert documents["text"].to_list() == ["small"]
        assert json.loads(drops["detail"][0])["threshold"] == 5_000_000

        headers = [("Content-Type", "text/html"), ("Content-Encoding", "gzip")]
        out = io.BytesIO()
        WARCWriter(out, gzip=True).write_record(
            WARCWriter(io.BytesIO()).create_warc_record(
                "http://h/bomb",
                "response",
                payload=io.BytesIO(gzip.compress(bytes(6_000_000))),
                http_headers=StatusAndHeaders("200 OK", headers, protocol="HTTP/1.1"),
            )
        )
        (tmp_path / "x").write_bytes(out.getvalue())
        drops = run_ingest(tmp_path / "x", "warc", max_document_bytes=1_000_000)[1]
        assert drops["reason"].to_list() == ["too_large"] and "threshold" in drops["detail"][0]


class TestJsonl:
    @given(st.lists(st.tuples(st.text(st.characters()), st.text(st.characters(exclude_categories=["Cs"]))), min_size=1))
    def test_what_is_written_comes_back(
        self, tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
    ) -> None:
        path = tmp_path_factory.mktemp("jsonl") / "x"
        path.write_text("".join(json.dumps({"text": text, "note": note}) + "\n" for text, note in rows))
        documents, drops = run_ingest(path, "jsonl", shard="g001-x")
        assert len(documents) + len(drops) == len(rows)
        assert set(drops["reason"]) <= {"empty", "repeated"}
        expected = dict.fromkeys(sound_text(text) for text, _ in rows)
        assert documents["text"].to_list() == [text for text in expected if text and not text.isspace()]
        for metadata in documents["metadata"]:
            assert json.loads(metadata)["note"] in {note for _, note in rows}

    def test_a_bad_line_is_left_out_by_name_or_stops_the_run(self, tmp_path: Path) -> None:
        path = tmp_path / "x"
        path.write_bytes(b'{"text": "one"}\n{"text": "tw\n[1]\n\n{"text": 7}\n{"text": "five"}\n')
        with pytest.raises(LlmcoreError, match=r"^g000-x: line 2: no JSON object .*strict: false"):
            run_ingest(path, "jsonl", strict=True)
        documents, drops = run_ingest(path, "jsonl")
        assert documents["text"].to_list() == ["one", "five"]
        assert drops["reason"].to_list() == ["bad_input", "bad_input", "no_text"]
        first, second, third = map(json.loads, drops["detail"])
        assert first["file"] == "g000-x" and (first["place"], second["place"]) == ("line 2", "line 3")
        assert first["why"].startswith("no JSON object (Invalid control character") and third["line"] == 5

    def test_a_missing_field_names_those_that_are_there(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_text('{"body": "one", "title": "t"}\n')
        (detail,) = run_ingest(tmp_path / "x", "jsonl")[1]["detail"]
        assert "no field 'text'; name the text's field in text_column (there are: body, title)" in detail
        assert run_ingest(tmp_path / "x", "jsonl", text_column="body")[0]["text"].to_list() == ["one"]

    def test_an_address_may_be_any_field_that_names_a_row(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_text('{"text": "one", "id": 1}\n{"text": "two", "id": "b"}\n{"text": "3", "id": [3]}\n')
        documents, _ = run_ingest(tmp_path / "x", "jsonl", url_column="id")
        assert documents["url"].to_list() == ["1", "b", None]

    def test_compression_is_told_by_the_bytes(self, tmp_path: Path) -> None:
        lines = b'{"text": "one", "url": "http://h/a?b"}\n{"text": "two"}\n'
        zstd = pa.compress(lines, codec="zstd", asbytes=True)
        padded = lzma.compress(lines[:40]) + bytes(8) + lzma.compress(lines[40:])  # streams behind each other
        packed = [gzip.compress(lines), lzma.compress(lines), bz2.compress(lines), zstd, padded]
        for number, content in enumerate(packed):
            (tmp_path / str(number)).write_bytes(content)
            assert run_ingest(tmp_path / str(number), "jsonl")[0]["url"].to_list() == ["http://h/a?b", None]
        for content in packed:
            (tmp_path / "cut").write_bytes(content[:-9])
            assert "bad_input" in run_ingest(tmp_path / "cut", "jsonl")[1]["reason"].to_list()

    def test_long_lines_null_bytes_and_lone_surrogates(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_text(
            json.dumps({"text": "long " * 2_000_000})
            + "\n"
            + '{"text": "nul\\u0000 lone \\ud800 pair \\ud83d\\ude00"}\n'
        )
        documents, _ = run_ingest(tmp_path / "x", "jsonl")
        assert documents["text"].str.len_bytes().to_list()[0] == 10_000_000
        assert documents["text"][1] == "nul lone \ufffd pair 😀"
        documents, drops = run_ingest(tmp_path / "x", "jsonl", max_document_bytes=1000)
        assert json.loads(drops["detail"][0]) == {"value": 10_000_000, "threshold": 1000}


class TestTables:
    def test_the_bundled_addresses_come_with_what_is_known_of_them(self) -> None:
        documents, drops = run_ingest(bundled("sotu.parquet"), "parquet", licence="CC0-1.0")
        assert (len(documents), len(drops)) == (233, 0)
        assert documents["url"][0] == "sotu/1790-george-washington"
        assert json.loads(documents["metadata"][0]) == {
            "content_type": "text/plain",
            "name": "George Washington",
            "party": "none",
            "year": 1790,
        }

    def test_frames_are_cut_by_size_and_by_rows(self) -> None:
        addresses = pl.read_parquet(bundled("sotu.parquet"))
        params = IngestParams(source="sotu", kind="parquet", frame_bytes=2_000_000)
        frames = list(ingest(bundled("sotu.parquet"), params).outputs["kept"])
        assert all(frame["text"].str.len_bytes().sum() <= 2_000_000 for frame in frames) and len(frames) == 6
        assert pl.concat(frames)["text"].to_list() == addresses["text"].to_list()
        by_rows = ingest(bundled("sotu.parquet"), IngestParams(source="sotu", kind="parquet", frame_rows=100)).outputs[
            "kept"
        ]
        assert [len(frame) for frame in by_rows] == [100, 100, 33]

    def test_a_column_that_is_missing_or_no_text_is_named(self, tmp_path: Path) -> None:
        frame = tmp_path / "x"
        pl.DataFrame({"text": [1], "body": ["x"]}).write_parquet(frame)
        with pytest.raises(LlmcoreError, match="column 'text' holds Int64, not text"):
            run_ingest(frame, "parquet", strict=True)
        with pytest.raises(LlmcoreError, match=r"no column 'content'; .*there are: text, body"):
            run_ingest(frame, "parquet", text_column="content", strict=True)

    def test_rows_without_text_are_dropped_with_their_row(self, tmp_path: Path) -> None:
        pl.DataFrame({"text": ["a", None, " ", "a"]}).write_parquet(tmp_path / "x")
        documents, drops = run_ingest(tmp_path / "x", "parquet")
        assert documents["text"].to_list() == ["a"]
        assert drops["reason"].to_list() == ["no_text", "empty", "repeated"]

    def test_columns_of_any_type_become_metadata(self, tmp_path: Path) -> None:
        moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        columns = {
            "text": pl.Series(["a", "b"], dtype=pl.Categorical),
            "when": [moment, None],
            "scores": [[0.5, float("nan")], []],
            "nested": [{"deep": ["x"]}, {"deep": None}],
            "picture": [b"\x00\xff", b""],
        }
        pl.DataFrame(columns).write_parquet(tmp_path / "x")
        documents, _ = run_ingest(tmp_path / "x", "parquet")
        first = json.loads(documents["metadata"][0])
        assert documents["text"].to_list() == ["a", "b"] and set(first) == {"content_type", "when", "scores", "nested"}
        assert first["nested"] == {"deep": ["x"]} and first["when"].startswith("2026-01-02")

    def test_a_damaged_file_is_named_with_its_row(self, tmp_path: Path) -> None:
        damaged = bytearray(bundled("sotu.parquet").read_bytes())
        damaged[2000:2100] = bytes(100)
        for content in (bytes(damaged), b"PAR1 and no more"):
            (tmp_path / "x").write_bytes(content)
            with pytest.raises(LlmcoreError, match=r"^g000-x: (row \d+|its footer): ") as caught:
                run_ingest(tmp_path / "x", "parquet", strict=True)
            assert "\n" not in str(caught.value)


class TestIdentity:
    @given(st.text(st.characters()), st.text(st.characters()), st.one_of(st.none(), st.text(st.characters())))
    def test_an_id_is_a_function_of_source_place_and_content(self, source: str, content: str, url: str | None) -> None:
        id = document_id(source, content, url)
        assert len(id) == 32 and int(id, 16) >= 0
        assert id == document_id(source, content, url)
        assert id != document_id(source + "x", content, url) and id != document_id(source, content + "x", url)

    @given(st.text(min_size=1), st.text())
    def test_parts_do_not_run_into_each_other(self, a: str, b: str) -> None:
        assert document_id(a, b) != document_id("", a + b)

    def test_the_host_is_no_part_of_it_but_the_path_is(self) -> None:
        assert document_id("s", "x", "http://127.0.0.1:1/a?b") == document_id("s", "x", "https://example.com/a?b")
        assert len({document_id("s", "x", url) for url in ("http://h/a", "http://h/b", "http://h/a?b", None)}) == 4

    def test_a_frame_that_breaks_the_contract_is_named(self) -> None:
        good = pl.DataFrame(
            {"id": ["0" * 32], "text": ["x"], "source": ["s"], "licence": ["unknown"]}
            | {name: [None] for name in ("url", "fetched_at", "lang", "lang_score", "metadata")},
            schema=DOCUMENT_SCHEMA,
        )
        assert check_documents(good, "f").equals(good) and check_documents(good.clear(), "f").is_empty()
        for bad, said in (
            (good.drop("url"), "f: column 'url' is missing"),
            (good.with_columns(lang_score=pl.lit(1.0)), "f: column 'lang_score' is Float64; it must be Float32"),
            (good.with_columns(text=pl.lit(None, pl.String)), "f: column 'text' is null in 1 rows, first in row 0"),
            (good.with_columns(id=pl.lit("ABC")), "f: column 'id' in row 0 is not 32 hex digits"),
        ):
            with pytest.raises(LlmcoreError, match=said):
                check_documents(bad, "f")
        assert dropped(good, "clean", "short", {"value": 1}).row(0) == ("0" * 32, "clean", "short", '{"value": 1}')


class TestCollect:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "corpus"
        (folder / "sub").mkdir(parents=True)
        (folder / "a.txt").write_text("first")
        (folder / "sub/b.md").write_text("second")
        (folder / "sub/c.txt.gz").write_bytes(gzip.compress("dritter Text, größer".encode()))
        (folder / "ignored.png").write_bytes(b"\x89PNG")
        return folder

    def run(
        self, folder: Path, root: Path, kind: str = "text", previous: LocalRun | None = None
    ) -> tuple[LocalRun, Any]:
        files, paths = scan(kind, str(folder))
        inputs = {"previous": LocalFiles(previous.out)} if previous else {}
        run = LocalRun(root, outside={"paths": paths}, inputs=inputs)
        return run, collect(inputs, CollectParams(name="mine", kind=kind, files=files), run)

    def test_a_folder_of_text_becomes_documents_named_by_file(self, folder: Path, tmp_path: Path) -> None:
        run, metrics = self.run(folder, tmp_path / "run")
        assert metrics == {"files": 3, "new": 3, "changed": 0, "unchanged": 0, "gone": 0}
        (shard,) = LocalFiles(run.out).names("raw/")
        documents, _ = run_ingest(run.out / shard, "text")
        assert documents.select("url", "text").rows() == [
            ("a.txt", "first"),
            ("sub/b.md", "second"),
            ("sub/c.txt.gz", "dritter Text, größer"),
        ]

    def test_a_refresh_appends_what_is_new_or_changed(self, folder: Path, tmp_path: Path) -> None:
        first, _ = self.run(folder, tmp_path / "first")
        (folder / "a.txt").write_text("first, changed")
        (folder / "d.txt").write_text("fourth")
        (folder / "sub/b.md").unlink()
        second, metrics = self.run(folder, tmp_path / "second", previous=first)
        assert metrics == {"files": 3, "new": 1, "changed": 1, "unchanged": 1, "gone": 1}
        names = LocalFiles(second.out).names("raw/")
        assert names == ["raw/g000-00000.parquet", "raw/g001-00000.parquet"]
        assert file_digest(second.out / names[0]) == file_digest(first.out / names[0])
        assert pl.read_parquet(second.out / names[1])["name"].to_list() == ["a.txt", "d.txt"]
        third, quiet = self.run(folder, tmp_path / "third", previous=second)
        assert (quiet["unchanged"], LocalFiles(third.out).names("raw/")) == (3, names)

    def test_the_generation_behind_g999_is_g1000(self, folder: Path, tmp_path: Path) -> None:
        files, paths = scan("text", str(folder))
        before, params = {}, CollectParams(name="mine", kind="text", files=files)
        for number in (998, 999, 1000, None):
            run = LocalRun(tmp_path / str(number), {"paths": paths}, inputs=before, generation=number or 0)
            (folder / "a.txt").write_text(f"first, in state {number}")
            params = CollectParams(name="mine", kind="text", files=scan("text", str(folder))[0])
            metrics = collect(before, params, run)
            before = {"previous": LocalFiles(run.out)}
        names = [f"collected/g{number}.parquet" for number in (998, 999, 1000, 1001)]
        assert before["previous"].names("collected/") == names
        assert metrics == {"files": 3, "new": 0, "changed": 1, "unchanged": 2, "gone": 0}
        run = LocalRun(tmp_path / "again", {"paths": paths}, inputs=before)
        assert collect(before, params, run)["unchanged"] == 3, "what g1001 holds is what counts"

    def test_a_file_that_changes_under_its_digest_is_noticed(self, folder: Path, tmp_path: Path) -> None:
        files, paths = scan("text", str(folder))
        (folder / "a.txt").write_text("other")
        with pytest.raises(LlmcoreError, match=r"a.txt: the file has changed"):
            collect({}, CollectParams(name="x", kind="text", files=files), LocalRun(tmp_path / "r", {"paths": paths}))

    def test_a_name_that_is_no_utf_8_is_spelled_out(self, folder: Path, tmp_path: Path) -> None:
        (folder / os.fsdecode(b"\xff.txt")).write_text("words")
        run, metrics = self.run(folder, tmp_path / "run")
        documents, _ = run_ingest(run.out / "raw/g000-00000.parquet", "text")
        assert metrics["files"] == 4 and "\\xff.txt" in documents["url"].to_list()

    def test_globs_single_files_and_nothing_at_all(self, folder: Path) -> None:
        assert list(scan("text", f"{folder}/**/*.md")[0]) == ["sub/b.md"]
        assert list(scan("text", f"{folder}/ignored.png")[0]) == ["ignored.png"]
        with pytest.raises(UsageError, match="does not exist"):
            scan("text", f"{folder}/missing.txt")
        with pytest.raises(UsageError, match=r"holds no warc file \(.warc, also .gz"):
            scan("warc", str(folder))

    def test_shard_names_differ_before_their_first_dot(self) -> None:
        names = ["a.jsonl", "a.jsonl.gz", "a.v1.jsonl", "a.v2.jsonl", "b/a.jsonl", "b-a.jsonl", "ä.jsonl", "a"]
        stems = [flat(name, "jsonl").split(".")[0] for name in names]
        assert len(set(stems)) == len(names) and stems[0] == "a" and all("/" not in stem for stem in stems)

    def test_bucket_objects_enter_by_digest(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            monkeypatch.setenv(name, "us-east-1")
        monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
        with mock_aws():
            client = boto3.client("s3")
            client.create_bucket(Bucket="texts")
            for key in ("c/a.txt", "c/sub/b.txt", "c/x.png", "other.txt"):
                client.put_object(Bucket="texts", Key=key, Body=f"text of {key}".encode())
            files, paths = scan("text", "s3://texts/c/")
            assert list(files) == ["a.txt", "sub/b.txt"] == list(scan("text", "s3://texts/c")[0])
            assert list(scan("text", "s3://texts/c/*.txt")[0]) == ["a.txt", "sub/b.txt"]
            assert list(scan("text", "s3://texts/other.txt")[0]) == ["other.txt"]
            run = LocalRun(tmp_path, outside={"paths": paths})
            assert collect({}, CollectParams(name="x", kind="text", files=files), run)["new"] == 2
            (shard,) = LocalFiles(run.out).names("raw/")
            assert pl.read_parquet(run.out / shard)["content"].to_list() == [b"text of c/a.txt", b"text of c/sub/b.txt"]
            with pytest.raises(UsageError, match="s3://absent/x cannot be listed"):
                scan("text", "s3://absent/x")

    def test_bundles_are_cut_by_size(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(collecting, "BUNDLE_BYTES", 6)
        run, _ = self.run(folder, tmp_path / "run")
        assert LocalFiles(run.out).names("raw/") == ["raw/g000-00000.parquet", "raw/g000-00001.parquet"]


def test_what_this_version_makes_of_a_fixed_input_is_known() -> None:
    documents, drops = run_ingest(bundled("archive.warc.gz"), "warc")
    digests = {
        STAGE.version: hashlib.sha256((documents.write_ndjson() + drops.write_ndjson()).encode()).hexdigest()[:16]
    }
    assert digests == {2: "053386290f4f4120"}, "ingest gives other output: raise its version"
