"""A trace ends with what was read, finds files where they lie, and tells what was masked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llmcore.account.trace import Decision, trace
from llmcore.artifacts import roots, runner
from llmcore.artifacts.manifest import ArtifactRef, manifest_of
from llmcore.artifacts.recipe import StoreFiles, resolve
from llmcore.artifacts.store import Store, open_store
from llmcore.planning.chain import build
from llmcore.planning.config import load
from llmcore.quickstart import bundled
from llmcore.training.exposure import Reading
from tests.small import BYTES_EACH, TINY_TRAINING, small_config

pytestmark = pytest.mark.slow

MAIL = "\n\nWrite to jane.doe@example.org or to john.roe@example.org before you come.\n"


@dataclass(frozen=True)
class Made:
    """A model of two folders whose files have the same names; of the plan only a few windows were read."""

    folder: Path
    store: Store
    done: Mapping[str, ArtifactRef]

    def files(self, step: str) -> StoreFiles:
        return StoreFiles(self.store, manifest_of(self.store, self.done[step]).outputs)

    def trace(self, **wanted: str) -> list[Decision]:
        return list(trace(self.store, **wanted))

    def pieces(self, split: str = "train") -> pl.DataFrame:
        """The plan, and how often each piece was read."""
        plan = self.files("pack").path(f"plan/{split}.parquet")
        table = pl.read_parquet(plan)
        if split != "train":
            return table
        times = Reading.read(self.files("train").path("reading.json")).times()
        return table.with_columns(times=pl.Series(times[table["window"].to_numpy()]))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    texts = pl.read_parquet(bundled("sotu.parquet"))["text"].slice(60, 60)
    for number, text in enumerate(texts):
        path = folder / ("letters" if number % 2 else "books") / f"en/{number // 2:03d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text[:BYTES_EACH] + (MAIL if number == 1 else ""))
    (folder / "books/en/copy.txt").write_text((folder / "books/en/003.txt").read_text())
    sources = [
        {"kind": "text", "name": name, "path": name, "licence": "CC0-1.0", "shard_bytes": 40_000}
        for name in ("books", "letters")
    ]
    training = TINY_TRAINING | {"steps": 3, "batch": 4, "micro_batch": 4, "warm_up": 1}
    config = load(small_config(folder, sources=sources, train=training))
    store, chain = open_store(config.store), build(config)
    done = dict(chain.pinned)
    for step in chain.until("train"):
        done[step.name] = runner.build(store, resolve(store, step, done))
    roots.set_ref(store, "mine", done["train"].plain())
    return Made(folder, store, done)


def test_a_document_that_was_read_says_at_which_steps_and_how_often(made: Made) -> None:
    pieces = made.pieces()
    id = pieces.filter(pl.col("times") > 0)["id"][0]
    mine = pieces.filter(pl.col("id") == id)
    last = made.trace(doc=id)[-1]
    assert (last.step, last.outcome) == ("train", "trained on")
    share = 100 * mine.filter(pl.col("times") > 0)["length"].sum() / mine["length"].sum()
    part = "all" if share == 100 else f"{share:.0f} %"
    assert re.fullmatch(rf"at steps [1-3, -]+: {part} of its {mine['length'].sum()} tokens, once", last.detail)


def test_a_document_that_was_not_read_ends_by_saying_so(made: Made) -> None:
    often = made.pieces().group_by("id").agg(pl.col("times").sum())
    id = often.filter(pl.col("times") == 0)["id"][0]
    rows = made.trace(doc=id)
    assert (rows[-1].step, rows[-1].outcome) == ("train", "not trained on")
    assert re.match(r"no step saw it: it is in the train split, but 0\.\d+ passes", rows[-1].detail)
    assert [row.outcome for row in rows if row.step == "mine"] == ["named"]


def test_a_document_that_is_held_out_or_dropped_ends_by_saying_so(made: Made) -> None:
    held_out = made.pieces("test")["id"][0]
    assert made.trace(doc=held_out)[-1].detail == "no step saw it: it is held out (test)"
    copy = made.trace(url=str(made.folder / "books/en/copy.txt"))
    originals = made.trace(url=str(made.folder / "books/en/003.txt"))
    dropped = next(rows for rows in (copy, originals) if any(row.outcome.startswith("dropped") for row in rows))
    assert dropped[-1].outcome == "not trained on"
    assert dropped[-1].detail == "no step saw it: dedup dropped: exact_duplicate"


def test_files_of_one_name_are_found_apart_by_their_paths(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    by_source = {}
    for source in ("books", "letters"):
        rows = made.trace(url=str(made.folder / source / "en/004.txt"))
        by_source[source] = {row.document for row in rows}
        assert {row.step for row in rows if row.step.startswith("ingest")} == {f"ingest {source}"}
    assert by_source["books"].isdisjoint(by_source["letters"])
    both = by_source["books"] | by_source["letters"]
    assert {row.document for row in made.trace(url="en/004.txt")} == both
    monkeypatch.chdir(made.folder)
    assert {row.document for row in made.trace(url="books/en/004.txt")} == by_source["books"]
    (id,) = by_source["letters"]
    assert {row.document for row in made.trace(doc=id)} == {id}
    assert made.trace(url=str(made.folder / "elsewhere/en/004.txt")) == []


def test_what_was_masked_is_told(made: Made) -> None:
    def pii(name: str) -> str:
        return next(row.detail for row in made.trace(url=str(made.folder / name)) if row.step == "pii")

    assert pii("letters/en/000.txt").endswith("masked: EMAIL_ADDRESS 2")
    assert pii("books/en/004.txt").endswith("nothing masked")


def test_reading_is_a_function_of_plan_and_parameters(made: Made) -> None:
    params = manifest_of(made.store, made.done["train"]).identity["params"]
    planned = Reading.planned(made.files("pack").path("plan/train.parquet"), params)
    assert planned == Reading.read(made.files("train").path("reading.json"))
    assert np.bincount(planned.times()).tolist() == [planned.windows - 12, 12]
