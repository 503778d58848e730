"""The loader: tokens stay on disk, and batches are those of a plain reading of the plan."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcore.errors import LlmcoreError
from llmcore.tokens.pack import plan_windows
from llmcore.training.loader import IGNORED, Batch, Windows
from tests.small_disk import small_disk

END = 7
WINDOW = 16


def write(folder: Path, shards: list[list[list[int]]], kind: type[pl.DataType] = pl.UInt16) -> dict[str, Path]:
    """Token shards and plan.parquet; returns the shards by name."""
    facts, paths = [], {}
    for number, documents in enumerate(shards):
        name = f"g000-x-{number:05d}.parquet"
        paths[name] = folder / name
        pl.DataFrame({"tokens": pl.Series(documents, dtype=pl.List(kind))}).write_parquet(paths[name])
        for row, tokens in enumerate(documents):
            facts.append({"id": f"{number}-{row}", "shard": name, "row": row, "n_tokens": len(tokens)})
    plan_windows(pl.DataFrame(facts), WINDOW).write_parquet(folder / "plan.parquet")
    return paths


def plain(plan: pl.DataFrame, shards: list[list[list[int]]], number: int) -> list[tuple[int, int, int]]:
    """(token, target, slot) of one window, straight from the plan."""
    row: list[tuple[int, int, int]] = []
    for piece in plan.filter(pl.col("window") == number).sort("slot").iter_rows(named=True):
        tokens = [END, *shards[int(piece["shard"][7:12])][piece["row"]]]
        for place in range(piece["start"], piece["start"] + piece["length"]):
            row.append((tokens[place], tokens[place + 1], piece["slot"]))
    return row


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.lists(st.integers(0, 60_000), min_size=1, max_size=50), min_size=1, max_size=8),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([pl.UInt16, pl.UInt32]),
)
def test_batches_are_those_of_a_plain_reading(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[list[int]]], kind: type[pl.DataType]
) -> None:
    folder = tmp_path_factory.mktemp("plain")
    windows = Windows(folder / "plan.parquet", write(folder, shards, kind), WINDOW, END)
    plan = pl.read_parquet(folder / "plan.parquet")
    numbers = [*range(len(windows) - 1, -1, -1), -1]
    batch = windows[numbers]
    for line, number in enumerate(numbers):
        expected = plain(plan, shards, number)
        filled = batch.targets[line] != IGNORED
        found = zip(*(array[line][filled].tolist() for array in arrays(batch)), strict=True)
        assert list(found) == expected


def arrays(batch: Batch) -> tuple[Any, ...]:
    return batch.tokens, batch.targets, batch.document_ids


def test_processes_share_one_file_that_has_no_name_any_more(tmp_path: Path) -> None:
    shards = write(tmp_path, [[[1, 2, 3]] * 20, [[4] * 40] * 3])
    folder = tmp_path / "beside"
    folder.mkdir()
    barrier = threading.Barrier(3)
    made: dict[int, Windows] = {}

    def process(rank: int) -> None:
        made[rank] = Windows(tmp_path / "plan.parquet", shards, WINDOW, END, folder, rank == 0, lambda: _wait(barrier))

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not list(folder.iterdir()), "nothing lies about, also if the processes are killed from here on"
    everything = [arrays(made[rank][range(len(made[0]))]) for rank in range(3)]
    for others in everything[1:]:
        assert all(map(np.array_equal, everything[0], others))


def _wait(barrier: threading.Barrier) -> None:
    barrier.wait()


def test_what_a_killed_process_left_is_not_taken_for_the_tokens(tmp_path: Path) -> None:
    shards = write(tmp_path, [[[1, 2, 3]] * 20])
    names: list[Path] = []
    Windows(tmp_path / "plan.parquet", shards, WINDOW, END, tmp_path, True, lambda: names.extend(_asides(tmp_path)))
    names[0].write_bytes(b"half")
    windows = Windows(tmp_path / "plan.parquet", shards, WINDOW, END, tmp_path)
    assert windows[[0]].targets[0, :3].tolist() == [1, 2, 3]


def _asides(folder: Path) -> list[Path]:
    return list(folder.glob(".aside-*"))


def test_a_row_that_a_shard_lacks_is_not_read_from_the_next(tmp_path: Path) -> None:
    shards = write(tmp_path, [[[1, 2]], [[3, 4]]])
    plan = pl.read_parquet(tmp_path / "plan.parquet")
    plan.with_columns(row=pl.when(pl.col("shard").str.contains("00000")).then(1).otherwise(0)).write_parquet(
        tmp_path / "plan.parquet"
    )
    with pytest.raises(LlmcoreError, match="names tokens that the shards do not hold"):
        Windows(tmp_path / "plan.parquet", shards, WINDOW, END)


def test_a_disk_without_room_for_the_tokens_is_one_line(tmp_path: Path) -> None:
    shards = write(tmp_path, [[[1] * 50_000] * 20])
    with (
        small_disk(tmp_path / "disk", 1 << 20) as disk,
        pytest.raises(LlmcoreError, match=r"no space left in .*: 2\.0 MB are needed, 1\.0 MB are free"),
    ):
        Windows(tmp_path / "plan.parquet", shards, WINDOW, END, disk)
