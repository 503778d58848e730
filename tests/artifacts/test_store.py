"""What every store promises, on a folder, on moto's S3 server and on Ceph's S3 gateway."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import subprocess
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from llmcore.artifacts import outage
from llmcore.artifacts.backends import FileBackend
from llmcore.artifacts.epochs import Epochs
from llmcore.artifacts.export import export_files
from llmcore.artifacts.manifest import Manifest, Output
from llmcore.artifacts.s3 import S3Backend
from llmcore.artifacts.scratch import open_scratch
from llmcore.artifacts.store import Store, blob_name, open_store
from llmcore.errors import CorruptBlobError, LlmcoreError, UsageError
from llmcore.planning.doctor import examine
from tests import s3_server
from tests.prefect_server import free_port, wait_for


def file_of(folder: Path, data: bytes) -> Path:
    path = folder / hashlib.sha256(data).hexdigest()[:12]
    path.write_bytes(data)
    return path


def written(store: Store, name: str) -> datetime:
    entry = store.backend.entry(name)
    assert entry is not None
    return entry.written


@pytest.mark.parametrize("size", [0, 1, 20 << 20], ids=["empty", "byte", "multipart"])
def test_a_blob_comes_back_as_it_went(store: Store, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    digest = store.put_blob(file_of(tmp_path, data), ".parquet")
    assert digest == hashlib.sha256(data).hexdigest()
    assert store.fetch_blob(digest, ".parquet").read_bytes() == data
    assert store.blob_is_sound(digest, ".parquet")


def test_a_blob_that_is_found_is_renewed_and_not_written_again(store: Store, tmp_path: Path) -> None:
    data = os.urandom(2 << 20)  # what is smaller, S3 rather writes again
    path = file_of(tmp_path, data)
    name = blob_name(store.put_blob(path))
    before = written(store, name)
    wait_for(lambda: store.backend.now() > before, "the next tick of the store's clock")
    if isinstance(store.backend, S3Backend):
        store.backend.requests.clear()
        store.put_blob(path)
        assert store.backend.requests["PutObject"] == 0
    else:
        file = store.backend.local(name)
        assert file is not None
        inode = file.stat().st_ino
        store.put_blob(path)
        assert file.stat().st_ino == inode
    assert written(store, name) > before
    assert store.fetch_blob(store.put_blob(path)).read_bytes() == data


def test_a_blob_damaged_in_place_is_written_anew_by_whoever_makes_it_again(store: Store, tmp_path: Path) -> None:
    path = file_of(tmp_path, b"sound")
    store.put_blob(path)
    store.backend.replace(blob_name(hashlib.sha256(b"sound").hexdigest()), b"souns")
    assert store.fetch_blob(store.put_blob(path)).read_bytes() == b"sound"


def test_what_is_gone_cannot_be_renewed(store: Store, tmp_path: Path) -> None:
    assert not store.backend.renew("blobs/sha256/ab/abcd")
    store.backend.replace("a b/é", b"1")
    assert store.backend.renew("a b/é") and store.backend.read("a b/é") == b"1"


def test_many_blobs_go_and_come_at_once_in_the_order_given(store: Store, tmp_path: Path) -> None:
    files = [file_of(tmp_path, f"blob {number % 30}".encode()) for number in range(40)]
    digests = store.each(files, lambda path: store.put_blob(path, ".txt"))
    assert digests == [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    paths = store.each(digests, lambda digest: store.fetch_blob(digest, ".txt"))
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in files]
    with pytest.raises(CorruptBlobError, match="shard 7"):
        store.each([*digests, "0" * 64], lambda digest: store.fetch_blob(digest, ".txt", "shard 7"))
    assert store.each([], store.put_blob) == []


def test_an_upload_broken_off_is_listed_and_can_be_abandoned(store: Store) -> None:
    store.backend.replace("whole", b"1")
    assert list(store.backend.unfinished()) == []
    if isinstance(store.backend, S3Backend):
        begun = store.backend.client.create_multipart_upload(
            Bucket=store.backend.bucket, Key=f"{store.backend.prefix}blobs/x y"
        )
        assert begun["UploadId"]
    else:
        assert isinstance(store.backend, FileBackend)
        (store.backend.root / "blobs").mkdir()
        (store.backend.root / "blobs" / ".aside-x").write_bytes(b"half")
    (found,) = store.backend.unfinished()
    assert found.name.startswith("blobs/") and found.written <= store.backend.now()
    assert [entry.name for entry in store.backend.entries("")] == ["whole"]
    assert list(open_store(f"{store.uri}-beside").backend.unfinished()) == []
    store.backend.abandon(found)
    store.backend.abandon(found)
    assert list(store.backend.unfinished()) == [] and store.backend.read("whole") == b"1"


def test_a_row_of_epochs_moves_on_by_one_hand_at_a_time(store: Store) -> None:
    row = Epochs(store, "heads/tiny")
    assert row.newest() is None
    assert row.create(1, {"by": "a"}) and not row.create(1, {"by": "b"})
    assert row.create(2, {"by": "b"})
    newest = row.newest()
    assert newest is not None and (newest.number, newest.record) == (2, {"by": "b"})
    assert newest.entry.name == "heads/tiny/000000002" and abs(row.age(newest)) < timedelta(seconds=10)
    row.forget_before(2)
    assert row.newest() == newest and store.record("heads/tiny/000000001") is None
    assert Epochs(store, "heads/ti").newest() is None


def test_a_half_written_blob_is_written_again(store: Store, tmp_path: Path) -> None:
    path = file_of(tmp_path, b"whole")
    name = blob_name(hashlib.sha256(b"whole").hexdigest())
    store.backend.replace(name, b"wh")
    assert store.fetch_blob(store.put_blob(path)).read_bytes() == b"whole"


def test_a_corrupt_or_missing_blob_is_named(store: Store, tmp_path: Path) -> None:
    digest = store.put_blob(file_of(tmp_path, b"sound"))
    store.backend.replace(blob_name(digest), b"souns")
    assert not store.blob_is_sound(digest)
    with pytest.raises(CorruptBlobError, match=f"corrupt blob: shard 3 .*{digest}"):
        store.fetch_blob(digest, label="shard 3")
    store.backend.delete(blob_name(digest))
    with pytest.raises(CorruptBlobError, match=f"blob missing: shard 3 .*{digest}"):
        store.fetch_blob(digest, label="shard 3")


def _race(uri: str, barrier: Barrier, number: int, won: multiprocessing.Queue[int]) -> None:
    store = open_store(uri)
    for turn in range(5):
        barrier.wait(60)
        if store.commit(f"artifacts/race/{turn}.json", {"by": number}):
            won.put(turn * 100 + number)


def test_of_racing_commits_exactly_one_wins(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, won = context.Barrier(4), context.Queue()
    racers = [context.Process(target=_race, args=(store.uri, barrier, number, won)) for number in range(4)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(120)
        assert racer.exitcode == 0
    winners = sorted(won.get(timeout=10) for _ in range(5))
    assert [winner // 100 for winner in winners] == list(range(5)) and won.empty()
    for winner in winners:
        assert store.record(f"artifacts/race/{winner // 100}.json") == {"by": winner % 100}


def test_a_commit_is_final(store: Store) -> None:
    assert store.commit("artifacts/a/1.json", {"a": 1})
    assert not store.commit("artifacts/a/1.json", {"a": 2})
    assert store.record("artifacts/a/1.json") == {"a": 1}
    assert store.record("artifacts/a/2.json") is None


def test_a_listing_is_complete_beyond_one_page_and_keeps_to_its_folder(store: Store) -> None:
    names = {f"memo/a/{number:04d}" for number in range(1005)}
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: store.backend.replace(name, name.encode()), [*names, "memo/ab/1", "runs/é ü/1"]))
    assert {entry.name for entry in store.backend.entries("memo/a/")} == names
    assert {entry.bytes for entry in store.backend.entries("memo/a/")} == {len("memo/a/0000")}
    assert [entry.name for entry in store.backend.entries("runs/")] == ["runs/é ü/1"]
    assert list(store.backend.entries("memo/none/")) == []
    assert list(open_store(f"{store.uri}-beside").backend.entries("memo/")) == []


def test_what_is_deleted_is_gone(store: Store) -> None:
    store.backend.replace("runs/x/1", b"1")
    store.backend.delete("runs/x/1")
    store.backend.delete("runs/x/1")
    assert store.backend.read("runs/x/1") is None and store.backend.entry("runs/x/1") is None
    assert store.backend.local("runs/x/1") is None


def test_a_damaged_record_is_named(store: Store) -> None:
    for damage in (b"{", b"[1]", b"\xff"):
        store.backend.replace("artifacts/a/1.json", damage)
        with pytest.raises(LlmcoreError, match=r"damaged record artifacts/a/1\.json"):
            store.record("artifacts/a/1.json")


def test_the_store_tells_the_time_it_stamps(store: Store) -> None:
    store.backend.replace("stamp", b"")
    entry = store.backend.entry("stamp")
    assert entry is not None and abs(store.backend.now() - entry.written) < timedelta(seconds=10)


@pytest.mark.parametrize("uri", ["s3://there-is-no-such-bucket-here/x", "ftp://host/x", "file://host/x", "file:x"])
def test_a_store_that_is_none_is_refused_in_one_line(moto_server: dict[str, str], uri: str) -> None:
    with s3_server.in_environment(moto_server), pytest.raises(UsageError) as error:
        open_store(uri)
    assert "store" in str(error.value) and "\n" not in str(error.value)


def test_an_s3_server_that_does_not_answer_is_one_line(
    moto_server: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "OPEN_SECONDS", 0.5)
    dead = {**moto_server, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}
    with s3_server.in_environment(dead), pytest.raises(UsageError, match=r"cannot reach s3://stores/x/.*AWS_"):
        open_store("s3://stores/x")


@pytest.mark.parametrize(
    ("written", "folder"),
    [
        ("a%23b", "a#b"),
        ("a%2523b", "a%23b"),
        ("a#b?c", "a#b?c"),
        ("a b", "a b"),
        ("a%20", "a "),
        ("tab%09end", "tab\tend"),
        ("Ærø 日本", "Ærø 日本"),
        ("%C3%86r%C3%B8", "Ærø"),
        ("100%", "100%"),
    ],
)
def test_a_folders_uri_opens_the_same_folder_again(tmp_path: Path, written: str, folder: str) -> None:
    store = open_store(f"file://{tmp_path}/{written}")
    store.replace("refs/a.json", {"in": folder})
    assert (tmp_path / folder / "refs" / "a.json").is_file()
    again = open_store(store.uri)
    assert again.uri == store.uri and again.record("refs/a.json") == {"in": folder}


@pytest.mark.parametrize("prefix", ["a%23b", "a#b?c", "a b", "Ærø 日本", "100%", "a/b/"])
def test_a_buckets_uri_opens_the_same_prefix_again(moto_server: dict[str, str], prefix: str) -> None:
    with s3_server.in_environment(moto_server):
        bucket = s3_server.make_bucket(f"stores-{uuid.uuid4().hex[:8]}")
        store = open_store(f"{bucket}/{prefix}")
        store.replace("refs/a.json", {"in": prefix})
        assert store.backend.renew("refs/a.json")
        again = open_store(store.uri)
        assert again.uri == store.uri and again.record("refs/a.json") == {"in": prefix}
        (entry,) = open_store(bucket).backend.entries("")
        assert entry.name == f"{prefix.strip('/')}/refs/a.json"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def test_a_read_only_store_serves_reads_and_refuses_writes_in_one_line(small_disk: Path, tmp_path: Path) -> None:
    store = open_store(f"file://{small_disk}/store")
    digest = store.put_blob(file_of(tmp_path, b"1"))
    store.commit("artifacts/a/1.json", {"a": 1})
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert store.fetch_blob(digest).read_bytes() == b"1" and store.record("artifacts/a/1.json") == {"a": 1}
    assert abs(store.backend.now() - datetime.now(UTC)) < timedelta(seconds=10)
    assert [entry.name for entry in store.backend.entries("artifacts/")] == ["artifacts/a/1.json"]
    absent = open_store(f"file://{small_disk}/absent")
    assert absent.record("artifacts/a/1.json") is None and absent.backend.now()
    for write in (
        lambda: store.commit("artifacts/a/2.json", {}),
        lambda: store.backend.delete("artifacts/a/1.json"),
        lambda: store.put_blob(file_of(tmp_path, b"1")),
        lambda: store.put_blob(file_of(tmp_path, b"2")),
        lambda: store.replace("refs/a.json", {}),
        lambda: open_scratch(store, "k", tmp_path),
        lambda: absent.commit("artifacts/a/2.json", {}),
    ):
        with pytest.raises(UsageError, match=r"cannot .* the store .*Read-only file system; set `store`") as error:
            write()
        assert "\n" not in str(error.value)
    (found,) = [finding for finding in examine(store.uri) if finding.what == "store"]
    assert found.state == "broken" and "Read-only" in found.detail and "can be read" in found.detail


def test_room_is_asked_for_before_a_large_write(small_disk: Path, tmp_path: Path) -> None:
    store = open_store(f"file://{small_disk}/store")
    large = tmp_path / "large"
    large.write_bytes(os.urandom(3 << 20))
    with pytest.raises(LlmcoreError, match=r"no space left in the store .*3\.1 MB are needed"):
        store.put_blob(large)
    roomy = open_store(f"file://{tmp_path}/roomy")
    outputs = {"large.bin": Output(roomy.put_blob(large, ".bin"), large.stat().st_size)}
    manifest = Manifest("step", "key", "digest", {"stage": "s"}, {}, outputs, folders={}, metrics={})
    with pytest.raises(LlmcoreError, match=r"no space left in .*3\.1 MB are needed"):
        export_files(roomy, manifest, small_disk / "exported")
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []
    export_files(roomy, manifest, tmp_path / "exported")
    assert (tmp_path / "exported" / "large.bin").read_bytes() == large.read_bytes()


def test_a_folder_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="is no folder"):
        open_store(f"file://{tmp_path}/file")
    inside = open_store(f"file://{tmp_path}/file/inside")
    loop = open_store(f"file://{tmp_path}/store")
    for folder in ("blobs", "artifacts", "refs"):
        (tmp_path / "store" / folder).parent.mkdir(exist_ok=True)
        (tmp_path / "store" / folder).symlink_to(folder)
    for work in (
        lambda: inside.record("artifacts/a/1.json"),
        lambda: inside.commit("artifacts/a/1.json", {}),
        lambda: inside.backend.now(),
        lambda: inside.backend.delete("refs/a.json"),
        lambda: loop.record("refs/a.json"),
        lambda: loop.replace("refs/a.json", {}),
        lambda: list(loop.backend.entries("refs/")),  # who counted this as empty would collect everything as garbage
        lambda: loop.put_blob(file_of(tmp_path, b"1")),
    ):
        with pytest.raises(UsageError, match=r"cannot .* the store .*set `store`") as error:
            work()
        assert "\n" not in str(error.value)


def test_a_store_of_another_user_is_one_line(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store")
    store.replace("refs/a.json", {})
    store.put_blob(file_of(tmp_path, b"1"))
    (tmp_path / "store").chmod(0)
    us = os.geteuid()
    try:
        if us == 0:
            os.seteuid(65534)
        for work in (
            lambda: store.record("refs/a.json"),
            lambda: list(store.backend.entries("refs/")),
            lambda: store.replace("refs/a.json", {}),
            lambda: store.fetch_blob(hashlib.sha256(b"1").hexdigest()),
            lambda: store.backend.delete("refs/a.json"),
        ):
            with pytest.raises(UsageError, match=r"cannot .* the store .*Permission denied; set `store`"):
                work()
    finally:
        os.seteuid(us)
        (tmp_path / "store").chmod(0o755)
