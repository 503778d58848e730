"""What was hashed once is not read again, and no memory of it is ever believed wrongly or breaks a run."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
from pathlib import Path

import boto3
import pytest
from moto import mock_aws

from llmcore.artifacts.digests import data_digest, file_digests
from llmcore.artifacts.keys import file_digest
from llmcore.sources.collect import scan

SIZE = 8 << 20
MINUTE = 60


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of text whose files have not been written to for longer than a clock's tick, as far as anybody sees."""
    monkeypatch.setattr("llmcore.artifacts.digests.RACY_SECONDS", -MINUTE)
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.txt").write_bytes(name.encode() * SIZE)
    return folder


def bytes_read() -> int:
    """By this process since it began, from files of any kind."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_second_scan_reads_no_file(settled: Path) -> None:
    before = bytes_read()
    first = scan("text", str(settled))
    assert bytes_read() - before >= 3 * SIZE
    before = bytes_read()
    assert scan("text", str(settled)) == first
    assert bytes_read() - before < SIZE


def test_only_what_changed_is_read_again(settled: Path) -> None:
    first, _ = scan("text", str(settled))
    (settled / "b.txt").write_bytes(b"B" * SIZE)
    before = bytes_read()
    second, _ = scan("text", str(settled))
    assert SIZE <= bytes_read() - before < 2 * SIZE
    assert second == first | {"b.txt": file_digest(settled / "b.txt")} != first


def test_a_file_with_its_old_size_and_time_but_other_bytes_is_read_again(settled: Path) -> None:
    path = settled / "a.txt"
    seen = path.stat()
    file_digests([path])
    with path.open("r+b") as file:
        file.write(b"!")
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert path.stat().st_mtime_ns == seen.st_mtime_ns
    assert file_digests([path])[path] == file_digest(path)


def test_what_was_written_just_now_is_not_remembered(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "new.txt"
    path.write_text("one")
    file_digests([path])
    assert remembered(cache) == []


def test_names_that_are_no_text_are_remembered_too(settled: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(settled) + b"/\xff\xfe.txt"))
    path.write_bytes(b"x" * SIZE)
    first = file_digests([path])
    before = bytes_read()
    assert file_digests([path]) == first
    assert bytes_read() - before < SIZE


def test_a_second_scan_of_a_bucket_only_lists_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        boto3.setup_default_session()
        client = boto3.client("s3")
        client.create_bucket(Bucket="texts")
        for key in "ab":
            client.put_object(Bucket="texts", Key=f"c/{key}.txt", Body=b"text of " + key.encode())
        asked: list[str] = []
        session = boto3.DEFAULT_SESSION
        assert session is not None
        session.events.register("before-call.s3.GetObject", lambda params, **more: asked.append(params["url_path"]))
        first = scan("text", "s3://texts/c/")
        assert len(asked) == 2
        assert scan("text", "s3://texts/c/") == first and len(asked) == 2
        client.put_object(Bucket="texts", Key="c/b.txt", Body=b"text of B")
        changed = scan("text", "s3://texts/c/")
        assert changed[0]["a.txt"] == first[0]["a.txt"] and changed[0]["b.txt"] != first[0]["b.txt"] and len(asked) == 3


@pytest.mark.parametrize("damage", ["no database", "a folder", "a file in place of the folder", "other columns"])
def test_a_broken_memory_costs_time_and_nothing_else(damage: str, settled: Path, cache: Path) -> None:
    memory = cache / "digests.sqlite"
    if damage != "a file in place of the folder":
        cache.mkdir()
    if damage == "no database":
        memory.write_bytes(b"this is no database, and longer than a header" * 100)
    elif damage == "a folder":
        memory.mkdir()
    elif damage == "other columns":
        with sqlite3.connect(memory) as other:
            other.execute("CREATE TABLE digests (a, b)")
    else:
        cache.write_text("")
    first, _ = scan("text", str(settled))
    assert first == {f"{name}.txt": file_digest(settled / f"{name}.txt") for name in "abc"}
    before = bytes_read()
    assert scan("text", str(settled))[0] == first
    assert bytes_read() - before < SIZE, "this process hashes nothing twice, with or without a memory on disk"


def test_many_processes_share_one_memory(settled: Path, cache: Path) -> None:
    for number in range(40):
        (settled / f"{number}.txt").write_text(str(number))
    with multiprocessing.get_context("fork").Pool(8) as pool:
        found = pool.starmap(scan, [("text", str(settled))] * 16)
    assert all(one == found[0] for one in found)
    assert len(remembered(cache)) == 43


def test_the_digest_of_a_folder_is_that_of_its_names_and_files(tmp_path: Path) -> None:
    for name, file, content in (("one", "a", "x"), ("two", "a", "x"), ("three", "b", "x"), ("four", "a", "y")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(content)
    one, two, three, four = (data_digest(tmp_path / name) for name in ("one", "two", "three", "four"))
    assert one == two and len({one, three, four}) == 3


def remembered(cache: Path) -> list[str]:
    with sqlite3.connect(cache / "digests.sqlite") as memory:
        return [os.fsdecode(place) for (place,) in memory.execute("SELECT place FROM digests")]
