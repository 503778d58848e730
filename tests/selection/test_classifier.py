"""The classifier's draw hangs on the documents alone, and its model is whole or it is an error."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from llmcore.errors import LlmcoreError
from llmcore.quickstart import bundled
from llmcore.schema import document_id
from llmcore.selection.classifier import ClassifierParams, Draw, passage_count, passages, train
from llmcore.selection.signals import SignalsParams, signals
from tests.local_files import LocalFiles, LocalRun
from tests.small_disk import small_disk
from tests.text.test_clean import documents


def inputs(folder: Path, shards: list[pl.DataFrame]) -> dict[str, LocalFiles]:
    for number, shard in enumerate(shards):
        for name, table in (
            ("documents/kept", shard),
            ("signals/signals", signals(shard, SignalsParams()).outputs["signals"]),
        ):
            assert isinstance(table, pl.DataFrame)
            (folder / name).mkdir(parents=True, exist_ok=True)
            table.write_parquet(folder / name / f"g000-sotu-{number:05d}.parquet")
    return {role: LocalFiles(folder / role) for role in ("documents", "signals")}


@pytest.fixture(scope="module")
def corpus() -> pl.DataFrame:
    texts = pl.read_parquet(bundled("sotu.parquet"))["text"].head(12).to_list()
    return documents(*texts).with_columns(id=pl.Series([document_id("sotu", text) for text in texts]))


def test_the_same_documents_in_other_shards_give_the_same_model(corpus: pl.DataFrame, tmp_path: Path) -> None:
    params = ClassifierParams(max_passages=200, epochs=1)
    split_otherwise = [corpus[5:6], corpus.reverse()[:6], corpus[:5]]
    made = []
    for name, shards in (("one", [corpus]), ("many", split_otherwise)):
        run = LocalRun(tmp_path / name / "run")
        train(inputs(tmp_path / name, shards), params, run)
        made.append((run.out / "en.bin").read_bytes())
    assert made[0] == made[1]


def test_a_draw_holds_the_passages_of_lowest_hash_and_no_more() -> None:
    texts = {f"{number:032x}": f"word{number} " * (30 + 7 * number) for number in range(40)}
    small, large = Draw(10, 1, 20), Draw(10_000, 1, 20)
    for document, text in texts.items():
        small.offer(document, text)
    for document, text in reversed(texts.items()):
        large.offer(document, text)
    assert len(large.drawn()) == sum(passage_count(len(text.split()), 20) for text in texts.values())
    assert small.drawn() == large.drawn()[:10]
    assert Draw(10, 2, 20).drawn() == []


@pytest.mark.parametrize("length", [0, 9, 10, 19, 20, 29, 30, 400])
def test_passages_are_counted_without_being_cut(length: int) -> None:
    assert len(passages("a\u2003b\x1cc \n" * length, 20)) == passage_count(3 * length, 20)


def test_a_model_that_a_full_disk_cut_short_is_an_error(corpus: pl.DataFrame, tmp_path: Path) -> None:
    """fastText's save_model reports nothing."""
    given = inputs(tmp_path, [corpus])
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        run = LocalRun(tmp_path / "run")
        run.out.rmdir()
        run.out.symlink_to(disk)
        with pytest.raises(LlmcoreError, match=r"en\.bin: what lies there is not what was written"):
            train(given, ClassifierParams(max_passages=200, epochs=1), run)
