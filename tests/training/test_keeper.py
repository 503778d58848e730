"""Copies of checkpoints: whatever the store does meanwhile, the training goes on, and its own fault is what is told."""

from __future__ import annotations

import os
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from llmcore.artifacts import outage as away
from llmcore.artifacts import runner
from llmcore.artifacts.scratch import scratch_files
from llmcore.artifacts.store import Store, open_store
from llmcore.errors import LlmcoreError
from llmcore.training import keeper, stage
from tests import s3_server
from tests.prefect_server import answers, free_port, running, wait_for
from tests.training.corpus import TINY, WatchedRun, inputs_of, recipe_in, train

FORWARD = """
import asyncio, sys
near, far = map(int, sys.argv[1:])
async def pipe(reader, writer):
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()
async def serve(reader, writer):
    there = await asyncio.open_connection("127.0.0.1", far)
    await asyncio.gather(pipe(reader, there[1]), pipe(there[0], writer))
async def main():
    async with await asyncio.start_server(serve, "127.0.0.1", near) as server:
        await server.serve_forever()
asyncio.run(main())
"""


class Network:
    """The way to a server, which can be cut and mended: its port stays, and the server keeps its data."""

    def __init__(self, far: int, folder: Path) -> None:
        self.near, self.far, self.folder = free_port(), far, folder
        self._stack = ExitStack()
        self.mend()

    def mend(self) -> None:
        command = [sys.executable, "-c", FORWARD, str(self.near), str(self.far)]
        self._stack.enter_context(running(command, self.folder / "forward.log", os.environ))
        wait_for(lambda: answers(f"http://127.0.0.1:{self.near}/moto-api/"), "the way to the server")

    def cut(self) -> None:
        self._stack.close()


@pytest.fixture
def network(moto_server: dict[str, str], tmp_path: Path) -> Iterator[Network]:
    made = Network(int(moto_server["AWS_ENDPOINT_URL"].rsplit(":", 1)[1]), tmp_path)
    with s3_server.in_environment({**s3_server.settings(made.near), "LLMCORE_CACHE": str(tmp_path / "cache")}):
        yield made
    made.cut()


@pytest.fixture
def far_store(network: Network) -> Store:
    return open_store(f"{s3_server.make_bucket(f'away-{uuid.uuid4().hex[:8]}')}/store")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "KEEP_SECONDS", 0.3)
    monkeypatch.setattr(keeper, "FIRST_RETRY_SECONDS", 0.2)
    monkeypatch.setattr(stage, "REPORT_SECONDS", 0.1)


@dataclass
class Outage:
    """Cuts the way once the store has a checkpoint, and mends it when the training has said so and gone on."""

    network: Network
    at_cut: float | None = None
    mended: bool = False
    again: bool = False
    went_on: bool = False

    def report(self, done: float, total: float, text: str) -> None:
        if self.at_cut is None:
            if self.copied:
                self.network.cut()
                self.at_cut = done
        elif not self.mended:
            if "no checkpoint copied for" in text:
                self.went_on = "tokens/s" in text and done > self.at_cut
                self.network.mend()
                self.mended = True
        elif "no checkpoint copied" not in text:
            self.again = True

    copied: bool = False


@pytest.mark.slow
def test_a_store_that_is_away_for_a_while_does_not_end_a_training(
    corpus: Path, far_store: Store, network: Network, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_in(far_store, corpus, replace(TINY, steps=2000, checkpoint_every=100, validation_every=500))
    monkeypatch.setattr(away, "OUTAGE_SECONDS", 1.0)  # the store waits outages out too; here it gives up soon
    outage = Outage(network)
    taken: list[set[str]] = []
    copy = runner.StoreRun.keep_scratch

    def noted(run: runner.StoreRun) -> None:
        copy(run)
        there = scratch_files(far_store, recipe.key)
        taken.append({name for name in there if name.startswith("checkpoints/") and name.endswith(".json")})
        outage.copied = any(taken)

    monkeypatch.setattr(runner.StoreRun, "keep_scratch", noted)
    ref = runner.run_global(far_store, recipe, outage.report)
    assert outage.mended and outage.again and outage.went_on
    assert max(taken[-1]) > max(next(filter(None, taken)))  # what was copied last is newer than what was before
    assert runner.find(far_store, recipe) == ref
    assert not list(far_store.backend.entries(f"runs/{recipe.key}/scratch/"))


@dataclass
class RunWithoutStore(WatchedRun):
    """Its store never answers, at once or after for ever."""

    for_ever: bool = False

    def keep_scratch(self) -> None:
        self.kept += 1
        if self.for_ever:
            threading.Event().wait()
        raise ConnectionError("the store is away")


@pytest.mark.slow
@pytest.mark.parametrize("for_ever", [False, True], ids=["refuses", "hangs"])
def test_the_true_cause_is_told_though_the_last_copy_fails(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None, for_ever: bool
) -> None:
    monkeypatch.setattr(stage, "ABORT_SECONDS", 1.0)
    run = RunWithoutStore(tmp_path, for_ever=for_ever, stop_at=10)
    with pytest.raises(InterruptedError, match="cancelled") as caught:
        train(inputs_of(corpus), replace(TINY, steps=2000), run)
    assert any("the last checkpoint was not copied to the store" in note for note in caught.value.__notes__)
    assert run.kept
    with pytest.raises(LlmcoreError, match=r"^train\.learning_rate: the loss is not finite"):
        train(inputs_of(corpus), replace(TINY, learning_rate=1e30, warm_up=0), RunWithoutStore(tmp_path / "other"))
