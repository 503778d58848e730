"""Scratch outlives a crash: on S3 a copy that is whole at any moment, whatever is written and rotated meanwhile."""

from __future__ import annotations

import json
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llmcore.artifacts import outage, scratch
from llmcore.artifacts.scratch import drop_scratch, open_scratch, save_scratch
from llmcore.artifacts.store import Store, open_store
from llmcore.errors import LlmcoreError
from llmcore.training import checkpoint
from llmcore.training.marker import FOLDER
from tests import s3_server
from tests.delaying_proxy import Proxy, proxy
from tests.prefect_server import wait_for

RECIPE = {"layers": 1}


@pytest.fixture
def between(moto_server: dict[str, str]) -> Iterator[Proxy]:
    port = int(moto_server["AWS_ENDPOINT_URL"].rsplit(":", 1)[1])
    with proxy(port) as standing:
        yield standing


@pytest.fixture
def remote(moto_server: dict[str, str], between: Proxy, tmp_path: Path) -> Iterator[Store]:
    endpoint = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{between.port}", "LLMCORE_CACHE": str(tmp_path / "cache")}
    with s3_server.in_environment({**moto_server, **endpoint}):
        yield open_store(f"{s3_server.make_bucket(f'scratch-{uuid.uuid4().hex[:8]}')}/x")


def opened(store: Store, folder: Path) -> Path:
    """The scratch as another machine would find it."""
    machine = folder / uuid.uuid4().hex
    machine.mkdir()
    return open_scratch(store, "k", machine)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def train_to(folder: Path, step: int, size: int = 1000) -> None:
    tensors = {"a": torch.full((size,), float(step))}
    history = [{"step": step, "tokens": 1, "loss": 1.0, "learning_rate": 0.1, "grad_norm": 1.0}]
    checkpoint.save(folder / FOLDER, checkpoint.Checkpoint(step, tensors, tensors, history), RECIPE)


def latest(folder: Path) -> int:
    found = checkpoint.latest(folder / FOLDER, RECIPE)
    assert found is not None
    return found.step


def test_scratch_comes_back_as_it_was_left(store: Store, tmp_path: Path) -> None:
    mine = opened(store, tmp_path)
    train_to(mine, 1)
    (mine / "deep" / "er").mkdir(parents=True)
    (mine / "deep" / "er" / "é ü.txt").write_text("1")
    save_scratch(store, "k", mine)
    train_to(mine, 2)
    train_to(mine, 3)
    save_scratch(store, "k", mine)
    theirs = opened(store, tmp_path)
    assert content(theirs) == content(mine)
    assert latest(theirs) == 3
    drop_scratch(store, "k")
    assert content(opened(store, tmp_path)) == {}
    assert [entry for entry in store.backend.entries("runs/") if "probe" not in entry.name] == []


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "a/../../escaped", "."])
def test_names_from_the_bucket_that_lead_out_of_scratch_are_refused(remote: Store, tmp_path: Path, name: str) -> None:
    save_scratch(remote, "k", opened(remote, tmp_path))
    remote.backend.replace("runs/k/scratch/index.json", json.dumps({name: "0" * 64}).encode())
    with pytest.raises(LlmcoreError, match="leads out of scratch"):
        opened(remote, tmp_path)
    assert not list(tmp_path.rglob("escaped"))


def test_objects_beside_the_copy_never_reach_the_disk(remote: Store, tmp_path: Path) -> None:
    remote.backend.replace("runs/k/scratch/../../escaped", b"1")
    remote.backend.replace("runs/k/scratch/files/../../escaped", b"1")
    assert content(opened(remote, tmp_path)) == {} and not list(tmp_path.rglob("escaped"))


def test_half_written_checkpoints_and_files_stay_behind(remote: Store, tmp_path: Path) -> None:
    mine = opened(remote, tmp_path)
    train_to(mine, 1)
    whole = content(mine)
    saved = mine / FOLDER
    shutil.copytree(saved / "step-00000001", saved / ".step-00000002")
    (mine / ".status.json.123").write_text("half")
    shutil.copytree(saved / "step-00000001", saved / "step-00000003")
    (saved / "step-00000003" / "optimizer.safetensors").unlink()  # as a rotation leaves it that is at work
    shutil.copy(saved / "step-00000001.json", saved / "step-00000003.json")
    save_scratch(remote, "k", mine)
    theirs = content(opened(remote, tmp_path))
    assert {name: data for name, data in theirs.items() if not name.startswith(f"{FOLDER}/step-00000003/")} == whole


@pytest.mark.slow
def test_a_copy_finishes_whole_under_rotation(remote: Store, between: Proxy, tmp_path: Path) -> None:
    """Each upload takes longer than several checkpoints, so that what a copy began with is gone before it ends."""
    mine = opened(remote, tmp_path)
    train_to(mine, 1, size=500_000)
    save_scratch(remote, "k", mine)
    between.seconds = 0.2
    ended = threading.Event()
    done = [1]

    def train() -> None:
        while not ended.is_set():
            train_to(mine, done[-1] + 1, size=500_000)
            done.append(done[-1] + 1)

    trainer = threading.Thread(target=train)
    trainer.start()
    try:
        last = 1
        for copies in range(4):
            wait_for(lambda behind=2 * copies: len(done) > behind + 1, "the next checkpoints")
            save_scratch(remote, "k", mine)
            found = latest(opened(remote, tmp_path))
            assert found > last
            last = found
        assert len(done) > 4 * checkpoint.KEPT, "the trainer was too slow to rotate anything away"
    finally:
        ended.set()
        trainer.join()


def test_a_copy_that_breaks_off_leaves_the_one_before_it(
    remote: Store, between: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = opened(remote, tmp_path)
    train_to(mine, 1)
    save_scratch(remote, "k", mine)
    before = content(mine)
    train_to(mine, 2)
    train_to(mine, 3)
    monkeypatch.setattr(outage, "OUTAGE_SECONDS", 0.2)
    between.away = True
    with pytest.raises(LlmcoreError, match="run again"):
        save_scratch(remote, "k", mine)
    between.away = False
    assert content(opened(remote, tmp_path)) == before
    assert not list(mine.parent.glob(".copy-*"))


def test_a_damaged_file_of_equal_size_is_replaced_and_until_then_left_out(remote: Store, tmp_path: Path) -> None:
    mine = opened(remote, tmp_path)
    train_to(mine, 1)
    save_scratch(remote, "k", mine)
    (name,) = [entry.name for entry in remote.backend.entries("runs/k/scratch/files/") if entry.bytes > 3000][:1]
    data = remote.backend.read(name)
    assert data is not None
    remote.backend.replace(name, data[:-1] + bytes([data[-1] ^ 1]))
    assert len(content(opened(remote, tmp_path))) < len(content(mine))
    save_scratch(remote, "k", mine)
    assert content(opened(remote, tmp_path)) == content(mine)


def test_a_file_changed_under_equal_size_arrives(remote: Store, tmp_path: Path) -> None:
    mine = opened(remote, tmp_path)
    (mine / "history.safetensors").write_bytes(b"one")
    save_scratch(remote, "k", mine)
    (mine / "history.safetensors").write_bytes(b"two")
    save_scratch(remote, "k", mine)
    assert content(opened(remote, tmp_path)) == {"history.safetensors": b"two"}


def test_a_log_that_grows_during_the_copy_arrives(
    remote: Store, between: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = opened(remote, tmp_path)
    log = mine / "trainer.log"
    log.write_bytes(b"line\n")
    digest = scratch.file_digest

    def grown(path: Path) -> str:
        found = digest(path)
        with log.open("ab") as file:
            file.write(b"line\n")
        return found

    monkeypatch.setattr(scratch, "file_digest", grown)
    save_scratch(remote, "k", mine)
    monkeypatch.undo()
    with s3_server.in_environment({"LLMCORE_CACHE": str(tmp_path / "cache")}):
        assert content(opened(remote, tmp_path)) == {"trainer.log": b"line\n"}
