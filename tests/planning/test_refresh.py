"""A refresh over the real stages: what changed arrives, what it replaces leaves, and nothing else is done again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from llmcore.account.dropped import dropped_behind
from llmcore.account.funnel import counts_of, funnel, rows_behind, worst_rule
from llmcore.account.trace import trace
from llmcore.artifacts import roots, runner
from llmcore.artifacts.manifest import ArtifactRef, Manifest, manifest_of
from llmcore.artifacts.recipe import StoreFiles, resolve
from llmcore.artifacts.store import Store, open_store
from llmcore.planning.chain import build
from llmcore.planning.config import load
from llmcore.tokens.tokenise import SPLITS
from tests.small import small_config

LEARNED = ("site_lines", "tokenizer", "classifier", "benchmarks")


@dataclass(frozen=True)
class Dataset:
    """One state of the small corpus, packed."""

    store: Store
    done: Mapping[str, ArtifactRef]

    def manifest(self, step: str) -> Manifest:
        return manifest_of(self.store, self.done[step])

    def files(self, step: str) -> StoreFiles:
        return StoreFiles(self.store, self.manifest(step).outputs)

    def plan(self, split: str = "train") -> pl.DataFrame:
        return self.files("pack").table(f"plan/{split}.parquet")

    def planned(self) -> set[str]:
        return {id for split in SPLITS for id in self.plan(split)["id"]}


def packed(folder: Path, before: Dataset | None = None, until: str = "pack", source: str = "notes") -> Dataset:
    """Build up to the plan, or to another step; a refresh if there is something before."""
    config = load(folder / "small.yaml")
    store = before.store if before else open_store(config.store)
    previous = {step: ref for step, ref in before.done.items() if step == f"collect {source}"} if before else None
    chain = build(config, previous=previous, label="second" if before else None)
    done = dict(chain.pinned)
    for step in chain.until(until):
        if step.name not in done:
            done[step.name] = runner.build(store, resolve(store, step, done))
    return Dataset(store, done)


@dataclass(frozen=True)
class Refreshed:
    """A corpus, and the same with one document of the train split edited and another one deleted."""

    first: Dataset
    second: Dataset
    edited: str
    deleted: str
    old: str
    new: str
    gone: str


@pytest.fixture(scope="module")
def refreshed(tmp_path_factory: pytest.TempPathFactory) -> Refreshed:
    folder = tmp_path_factory.mktemp("refresh")
    source: dict[str, Any] = {"kind": "text", "name": "notes", "path": "texts", "licence": "CC0-1.0", "gone": "drop"}
    small_config(folder, sources=[source | {"shard_bytes": 40_000}])
    first = packed(folder)
    documents = first.files("split").table("kept/").filter(pl.col("split") == "train").select("id", "url")
    (old, edited), (gone, deleted) = documents.row(0), documents.row(-1)
    path = folder / "texts" / edited
    path.write_text(path.read_text() + "\n\nThis sentence was added to the document when it was corrected.\n")
    (folder / "texts" / deleted).unlink()
    second = packed(folder, first)
    named = second.files("split").table("kept/").filter(pl.col("url") == edited)["id"].to_list()
    (new,) = set(named) - {old}
    return Refreshed(first, second, edited, deleted, old, new, gone)


def test_the_correction_is_in_the_plan_and_what_it_replaces_is_not(refreshed: Refreshed) -> None:
    before, after = refreshed.first.planned(), refreshed.second.planned()
    assert before - after == {refreshed.old, refreshed.gone}
    assert after - before == {refreshed.new}
    dropped = refreshed.second.files("versions").table("dropped/").sort("reason")
    assert dropped.select("id", "stage", "reason").rows() == [
        (refreshed.gone, "versions", "gone"),
        (refreshed.old, "versions", "superseded"),
    ]
    assert refreshed.new in dropped["detail"][1] and "g001" in dropped["detail"][1]
    metrics = refreshed.second.manifest("pack").metrics
    read = sum(refreshed.second.manifest("tokenise").metrics[f"{split}_rows"] for split in SPLITS)
    assert sum(metrics[f"{split}_documents"] for split in SPLITS) + metrics["dropped"] == read


def test_what_was_learned_and_made_before_stays(refreshed: Refreshed) -> None:
    first, second = refreshed.first, refreshed.second
    assert [first.done[step].key for step in LEARNED] == [second.done[step].key for step in LEARNED]
    for step, ref in first.done.items():
        manifest = second.manifest(step)
        if "shards_computed" in manifest.run and ref.key != second.done[step].key:
            assert manifest.run["shards_computed"] == 1, step
        for name, output in first.manifest(step).outputs.items():
            if step not in ("versions", "pack"):
                assert manifest.outputs[name] == output, f"{step}: {name} changed"


def test_only_the_windows_change_in_which_the_documents_stood(refreshed: Refreshed) -> None:
    before, after = refreshed.first.plan(), refreshed.second.plan()
    left = [refreshed.old, refreshed.gone]
    first_shards = after.filter(pl.col("shard").str.starts_with("g000"))
    pieces = ["slot", "id", "shard", "row", "start", "length"]
    stays = before.filter(~pl.col("id").is_in(left))
    assert first_shards.select(pieces).sort(pieces).equals(stays.select(pieces).sort(pieces))
    moved = stays.join(first_shards, on=pieces, suffix="_now").filter(pl.col("window") != pl.col("window_now"))
    windows = after["window"].unique().sort().to_list()
    assert windows == list(range(len(windows))), "the numbers are dense"
    assert all(number >= len(windows) for number in moved["window"]), "only windows of the end take other numbers"
    together = (
        stays.join(first_shards, on=pieces, suffix="_now").group_by("window").agg(pl.col("window_now").n_unique())
    )
    assert (together["window_now"] == 1).all(), "pieces that shared a window share one"


def test_a_trace_tells_what_replaced_the_old_and_what_the_new_replaced(refreshed: Refreshed) -> None:
    store = refreshed.second.store
    roots.set_ref(store, "datasets/small", refreshed.second.done["pack"].plain())
    old, new = list(trace(store, doc=refreshed.old)), list(trace(store, doc=refreshed.new))
    assert old[-1].outcome == f"dropped: superseded by {refreshed.new} (g001)"
    assert {row.generation for row in old} == {"g000"}
    assert f"replaces {refreshed.old} (g000)" in [row.outcome for row in new]
    assert new[-1].outcome == "named" and new[-2].step == "pack"
    assert {row.generation for row in new} == {"g001", ""}
    assert list(trace(store, doc=refreshed.gone))[-1].outcome == "dropped: gone (g001)"
    assert {row.document for row in trace(store, url=refreshed.edited)} == {refreshed.old, refreshed.new}


def test_what_a_site_repeats_is_learned_once_and_taken_out_of_later_pages_too(tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    source = {"kind": "html", "name": "manual", "path": "pages", "licence": "CC0-1.0"}
    small_config(tmp_path, sources=[source])

    def write(number: int, tagline: str) -> None:
        own = f"<p>Page {number} says what no other page of this manual says, in a sentence of some length.</p>" * 2
        page = f"<html><body><div>{tagline}</div>{own}<p>Write to us about page {number}.</p></body></html>"
        (tmp_path / f"pages/{number:02d}.html").write_text(page)

    for number in range(12):
        write(number, "Small. Fast. Reliable.")
    first = packed(tmp_path, until="trim", source="manual")
    write(12, "Small. Fast. Reliable.")
    for number in range(13, 60):
        write(number, "Another tagline came later.")
    second = packed(tmp_path, first, until="trim", source="manual")
    assert first.done["site_lines"].key == second.done["site_lines"].key
    assert first.files("site_lines").table("lines.parquet")["line"].to_list() == ["Small. Fast. Reliable."]
    texts = second.files("trim").table("kept/")["text"]
    assert len(texts) == 60 and not texts.str.contains("Reliable", literal=True).any()
    assert texts.str.contains("Another tagline", literal=True).sum() == 47, "what is learned stays as it was"
    assert second.manifest("trim").metrics["changed"] == 13 == len(second.files("trim").table("removed/"))
    for name, output in first.manifest("trim").outputs.items():
        assert second.manifest("trim").outputs[name] == output


def test_a_refresh_reads_no_earlier_raw_file(tmp_path: Path) -> None:
    small_config(tmp_path)
    first = packed(tmp_path, until="collect notes")
    (tmp_path / "texts/new.txt").write_text("A text that came later.")
    raw = {name: out for name, out in first.manifest("collect notes").outputs.items() if name.startswith("raw/")}
    for output in raw.values():
        next((tmp_path / "store").rglob(f"{output.blob}*")).write_bytes(b"not what its name says")
    second = packed(tmp_path, first, until="collect notes").manifest("collect notes").outputs
    assert {name: second[name] for name in raw} == raw
    assert [name for name in second if name not in raw and name.startswith("raw/")] == ["raw/g001-00000.parquet"]


def test_a_refresh_that_finds_nothing_new_keeps_the_plan(refreshed: Refreshed, tmp_path: Path) -> None:
    folder = Path(refreshed.first.store.uri.removeprefix("file://")).parent
    third = packed(folder, refreshed.second)
    for step in ("tokenise", "pack"):
        assert third.done[step].digest == refreshed.second.done[step].digest


def test_the_funnel_tells_the_generations_apart_and_what_no_longer_stands(refreshed: Refreshed) -> None:
    second = refreshed.second
    steps = [step for step in second.done if not step.startswith("previous ")]
    files = {f"{step}/{name}": out for step in steps for name, out in second.manifest(step).outputs.items()}
    told = funnel([second.manifest(step).public() for step in steps], StoreFiles(second.store, files))
    for row in told.rows:
        assert row.source == "notes"
        assert row.read == row.kept + row.dropped
        assert row.dropped == sum(row.reasons.values())
    rows = {(row.stage, row.generation): row for row in told.rows}
    for door in told.passages:
        assert [generation for stage, generation in rows if stage == door.step] == ["g000", "g001"], door.step
        assert door.read == sum(row.read for row in told.rows if row.stage == door.step)
    assert [rows["clean", generation].read for generation in ("g000", "g001")] == [40, 1]
    assert rows["versions", "g000"].reasons == {"gone": 1, "superseded": 1}
    assert (
        rows["clean", "g001"].bytes_read
        == rows["extract", "g001"].bytes_kept
        == rows["ingest notes", "g001"].bytes_kept
    )
    standing = {door.step: door.kept for door in told.passages}
    assert standing["versions"] == len(second.planned()) == sum(row["documents"] for row in told.splits)
    assert told.sources[0]["trained_documents"] == second.plan()["id"].n_unique() == told.splits[0]["documents"]
    assert told.splits[0]["tokens"] == second.plan()["length"].sum()


def test_what_no_longer_stands_can_be_read_as_it_was(refreshed: Refreshed) -> None:
    second = refreshed.second
    found = {row.rule: row for row in dropped_behind(second.store, second.manifest("pack"), stage="versions")}
    before = refreshed.first.files("split").table("kept/")
    for rule, id, url in (("superseded", refreshed.old, refreshed.edited), ("gone", refreshed.gone, refreshed.deleted)):
        row = found.pop(rule)
        assert (row.id, row.url, row.source, row.generation) == (id, url, "notes", "g000")
        assert row.text == before.filter(pl.col("id") == id)["text"].item()
    assert not found


def test_counts_from_manifests_alone_are_those_of_the_funnel(refreshed: Refreshed) -> None:
    second = refreshed.second
    rows = rows_behind(second.store, second.manifest("pack"))
    counted = {
        (row.stage, row.generation): (row.read, row.kept, row.dropped)
        for step in second.done
        for row in counts_of(second.store, second.manifest(step), [second.manifest("split")])
    }
    assert counted == {(row.stage, row.generation): (row.read, row.kept, row.dropped) for row in rows}
    assert worst_rule(second.store, second.manifest("versions"), "notes", "g000") in ("gone", "superseded")
    assert worst_rule(second.store, second.manifest("versions"), "notes", "g001") == ""
