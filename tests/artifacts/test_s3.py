"""What the store on S3 promises beyond what every store does: its local cache, outages, servers that will not do."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from boto3.s3.transfer import TransferConfig

from llmcore.artifacts import cache, outage, s3
from llmcore.artifacts.s3 import S3Backend
from llmcore.artifacts.store import Store, blob_name, open_store
from llmcore.errors import CorruptBlobError, LlmcoreError, UsageError
from llmcore.planning.doctor import examine
from tests import s3_server
from tests.delaying_proxy import Proxy, proxy
from tests.prefect_server import wait_for

KILOBYTE = 1000


@pytest.fixture
def bucket(moto_server: dict[str, str], tmp_path: Path) -> Iterator[str]:
    with s3_server.in_environment({**moto_server, "LLMCORE_CACHE": str(tmp_path / "cache")}):
        yield s3_server.make_bucket(f"s3-{uuid.uuid4().hex[:8]}")


@pytest.fixture
def between(moto_server: dict[str, str], bucket: str) -> Iterator[Proxy]:
    """A proxy that stands between the stores opened from here on and the server."""
    with proxy(port_of(moto_server)) as standing, s3_server.in_environment(endpoint(standing.port)):
        yield standing


def port_of(server: dict[str, str]) -> int:
    return int(server["AWS_ENDPOINT_URL"].rsplit(":", 1)[1])


def endpoint(port: int) -> dict[str, str]:
    return {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}


def new_store(bucket: str) -> tuple[Store, S3Backend]:
    store = open_store(f"{bucket}/{uuid.uuid4().hex}")
    assert isinstance(store.backend, S3Backend)
    return store, store.backend


def put(store: Store, folder: Path, data: bytes) -> str:
    path = folder / hashlib.sha256(data).hexdigest()
    path.write_bytes(data)
    return store.put_blob(path)


def age_copies(folder: Path, seconds: float = cache.IN_USE_SECONDS + 60) -> None:
    """As if nobody had asked for any copy for so long, the older the earlier it was fetched."""
    copies = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_atime_ns)
    for number, path in enumerate(copies):
        stat = path.stat()
        os.utime(path, ns=(time.time_ns() - int((seconds - number) * 1e9), stat.st_mtime_ns))


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def fetch_in_a_process(uri: str, digests: list[str]) -> None:
    store = open_store(uri)
    for digest in digests:
        store.fetch_blob(digest)


def run_in_processes(uri: str, *parts: list[str]) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=fetch_in_a_process, args=(uri, part)) for part in parts]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0


# the cache


def test_the_cache_keeps_to_its_bound_by_removing_what_was_used_least_recently(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMCORE_CACHE_BYTES", str(100 * KILOBYTE))
    store, backend = new_store(bucket)
    digests = [put(store, tmp_path, os.urandom(10 * KILOBYTE)) for _ in range(30)]
    run_in_processes(store.uri, digests[:8])
    remembered = tmp_path / "cache" / "digests.sqlite"
    remembered.write_bytes(b"")
    age_copies(tmp_path / "cache")
    store.fetch_blob(digests[0])
    for digest in digests[8:16]:
        store.fetch_blob(digest)
    assert bytes_in(backend.cache.root) <= 100 * KILOBYTE
    assert remembered.exists(), "the bound is that of the copies"
    backend.requests.clear()
    store.fetch_blob(digests[0])  # the oldest file, but used since
    assert backend.requests["GetObject"] == 0
    store.fetch_blob(digests[1])
    assert backend.requests["GetObject"] == 1


def test_what_was_just_handed_out_stays_whatever_the_bound(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMCORE_CACHE_BYTES", str(20 * KILOBYTE))
    store, _ = new_store(bucket)
    digests = [put(store, tmp_path, os.urandom(10 * KILOBYTE)) for _ in range(10)]
    paths = store.each(digests, store.fetch_blob)
    run_in_processes(store.uri, digests[:5], digests[5:])
    assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths] == digests


def test_several_processes_share_one_cache(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMCORE_CACHE_BYTES", str(50 * KILOBYTE))
    store, backend = new_store(bucket)
    digests = [put(store, tmp_path, os.urandom(5 * KILOBYTE)) for _ in range(30)]
    run_in_processes(store.uri, digests, digests[::-1], digests[10:] + digests[:10])
    assert not [path for path in backend.cache.root.rglob(".aside-*")]
    age_copies(backend.cache.root)
    store.fetch_blob(put(store, tmp_path, os.urandom(5 * KILOBYTE)))
    assert bytes_in(backend.cache.root) <= 50 * KILOBYTE


def test_a_download_that_a_killed_process_left_goes_with_the_next_look(bucket: str, tmp_path: Path) -> None:
    store, backend = new_store(bucket)
    left = backend.cache.folder / ".aside-left"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    store.fetch_blob(put(store, tmp_path, b"1"))
    assert not left.exists()


def test_a_damaged_local_copy_is_fetched_afresh_and_the_store_not_blamed(bucket: str, tmp_path: Path) -> None:
    store, _ = new_store(bucket)
    digest = put(store, tmp_path, b"sound bytes")
    path = store.fetch_blob(digest)
    path.write_bytes(b"sound bytez")
    assert store.fetch_blob(digest).read_bytes() == b"sound bytes"
    path.write_bytes(b"")
    assert open_store(f"{store.uri}/").fetch_blob(digest).read_bytes() == b"sound bytes"


def test_a_blob_damaged_in_the_store_is_written_anew_by_whoever_makes_it_again(bucket: str, tmp_path: Path) -> None:
    store, backend = new_store(bucket)
    for data in (b"sound bytes", os.urandom(20 << 20)):
        digest = put(store, tmp_path, data)
        backend.replace(blob_name(digest), data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(CorruptBlobError, match=r"corrupt blob: .*rerun its stage with --force") as error:
            store.fetch_blob(digest)
        assert "delete" not in str(error.value)
        put(store, tmp_path, data)
        assert store.fetch_blob(digest).read_bytes() == data


def test_a_name_in_the_bucket_that_leads_out_of_the_cache_is_refused(bucket: str, tmp_path: Path) -> None:
    _, backend = new_store(bucket)
    with pytest.raises(LlmcoreError, match="leads out of"):
        backend.local("blobs/../../../../../escaped")


def test_a_cache_that_cannot_be_is_one_line(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("LLMCORE_CACHE", str(tmp_path / "file"))
    store, _ = new_store(bucket)
    with pytest.raises(UsageError, match=r"cannot use the cache .*set LLMCORE_CACHE"):
        store.fetch_blob(put(store, tmp_path, b"1"))
    monkeypatch.setenv("LLMCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LLMCORE_CACHE_BYTES", "10 GB")
    store, _ = new_store(bucket)
    with pytest.raises(UsageError, match="LLMCORE_CACHE_BYTES='10 GB' is no number of bytes"):
        store.fetch_blob(put(store, tmp_path, b"1"))


# requests


def test_requests_are_counted_and_few(bucket: str, tmp_path: Path) -> None:
    store, backend = new_store(bucket)
    store.commit("artifacts/a/1.json", {})  # the first write proves the server
    backend.requests.clear()
    put(store, tmp_path, b"1")
    put(store, tmp_path, b"1")
    assert backend.requests == {"PutObject": 2}
    backend.requests.clear()
    large = os.urandom(2 << 20)
    digest = put(store, tmp_path, large)
    assert backend.requests == {"HeadObject": 1, "PutObject": 1}
    backend.requests.clear()
    put(store, tmp_path, large)
    assert backend.requests == {"HeadObject": 2, "CopyObject": 1}
    backend.requests.clear()
    store.fetch_blob(digest)
    store.fetch_blob(digest)
    assert backend.requests == {"GetObject": 1}


def test_blobs_travel_at_once(bucket: str, between: Proxy, tmp_path: Path) -> None:
    store, _ = new_store(bucket)
    files = []
    for number in range(40):
        files.append(tmp_path / str(number))
        files[-1].write_bytes(b"%d" % number)
    between.seconds, between.most_at_once = 0.05, 0
    digests = store.each(files, store.put_blob)
    assert 4 <= between.most_at_once <= 16
    between.most_at_once = 0
    store.each(digests, store.fetch_blob)
    assert 4 <= between.most_at_once <= 16


def test_an_object_beyond_one_copy_request_is_renewed_in_parts(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "COPY_LIMIT", 10 << 20)
    parts = TransferConfig(multipart_threshold=10 << 20, multipart_chunksize=8 << 20)
    monkeypatch.setattr(s3, "COPY_PARTS", parts)
    store, backend = new_store(bucket)
    data = os.urandom(20 << 20)
    name = blob_name(put(store, tmp_path, data))
    before = backend.entry(name)
    assert before is not None
    wait_for(lambda: backend.now() > before.written, "the next tick of the server's clock")
    backend.requests.clear()
    assert backend.renew(name)
    after = backend.entry(name)
    assert after is not None and after.written > before.written and backend.requests["UploadPartCopy"] == 3
    assert backend.holds(name, tmp_path / hashlib.sha256(data).hexdigest())
    assert not backend.renew("blobs/none")


# servers and networks that will not do


def test_a_server_that_ignores_if_none_match_is_refused_at_the_first_write_and_by_the_doctor(
    moto_server: dict[str, str], bucket: str, tmp_path: Path
) -> None:
    sound, _ = new_store(bucket)
    digest = put(sound, tmp_path, b"1")
    with (
        proxy(port_of(moto_server), forget=b"If-None-Match") as careless,
        s3_server.in_environment(endpoint(careless.port)),
    ):
        store = Store(sound.uri, S3Backend(*sound.uri.removeprefix("s3://").split("/", 1)))
        assert store.fetch_blob(digest).read_bytes() == b"1"
        for write in (
            lambda: store.commit("artifacts/a/1.json", {}),
            lambda: store.replace("refs/a.json", {}),
            lambda: put(store, tmp_path, b"2"),
        ):
            with pytest.raises(UsageError, match="ignores `If-None-Match`") as error:
                write()
            assert "\n" not in str(error.value)
        assert store.record("artifacts/a/1.json") is None and list(store.backend.entries("runs/")) == []
        (found,) = [finding for finding in examine(f"{sound.uri}-other") if finding.what == "store"]
        assert found.state == "broken" and "If-None-Match" in found.detail
    (found,) = [finding for finding in examine(sound.uri) if finding.what == "store"]
    assert found.state == "ok" and list(sound.backend.entries("runs/")) == []


@pytest.mark.slow
def test_a_short_outage_is_waited_out(bucket: str, between: Proxy, tmp_path: Path) -> None:
    store, backend = new_store(bucket)
    digest = put(store, tmp_path, b"1")
    data = os.urandom(20 << 20)
    for work in (
        lambda: store.fetch_blob(digest),
        lambda: store.commit(f"artifacts/a/{uuid.uuid4().hex}.json", {"a": 1}),
        lambda: list(backend.entries("")),
        lambda: backend.renew(blob_name(digest)),
        lambda: put(store, tmp_path, data),
        backend.now,
    ):
        between.away = True
        back = threading.Timer(1.0, lambda: setattr(between, "away", False))
        back.start()
        assert work()
        assert not between.away
    assert store.fetch_blob(hashlib.sha256(data).hexdigest()).read_bytes() == data


def test_an_answer_cut_off_is_asked_for_again(bucket: str, between: Proxy, tmp_path: Path) -> None:
    store, backend = new_store(bucket)
    data = os.urandom(300 * KILOBYTE)
    digest = put(store, tmp_path, data)
    between.cuts = 2
    assert store.fetch_blob(digest).read_bytes() == data
    assert between.cuts == 0
    between.cuts = 2
    assert backend.read(blob_name(digest)) == data
    assert between.cuts == 0


def test_a_long_outage_is_one_line_that_asks_to_run_again(
    bucket: str, between: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "OUTAGE_SECONDS", 0.5)
    store, backend = new_store(bucket)
    large = tmp_path / "large"
    large.write_bytes(os.urandom(20 << 20))
    digest = put(store, tmp_path, b"1")
    between.away = True
    for work in (
        lambda: store.fetch_blob(digest),
        lambda: store.commit("artifacts/a/2.json", {}),
        lambda: list(backend.entries("")),
        lambda: list(backend.unfinished()),
        lambda: backend.upload("large", large),
        lambda: backend.delete("large"),
        backend.now,
    ):
        with pytest.raises(LlmcoreError, match=r"cannot .* s3://.*run again") as error:
            work()
        assert not isinstance(error.value, UsageError) and "\n" not in str(error.value)


def test_what_the_server_refuses_is_one_line(moto_server: dict[str, str], bucket: str, tmp_path: Path) -> None:
    store, backend = new_store(bucket)
    digest = put(store, tmp_path, b"1")
    for entry in list(backend.entries("")):
        backend.delete(entry.name)
    backend.client.delete_bucket(Bucket=backend.bucket)
    large = tmp_path / "large"
    large.write_bytes(os.urandom(20 << 20))
    for work in (
        lambda: backend.upload("large", large),  # boto3 wraps what happens to a part
        lambda: store.commit("artifacts/a/2.json", {}),
        lambda: list(backend.entries("")),
        lambda: store.fetch_blob(digest),
        backend.now,
    ):
        with pytest.raises(UsageError, match=r"cannot .* s3://.*check `store`") as error:
            work()
        assert "\n" not in str(error.value)
