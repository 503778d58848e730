"""Which documents stand after edits, renames, copies and deletions: over random histories, on the real stages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcore.artifacts.shards import generation_name
from llmcore.quickstart import bundled
from llmcore.schema import DOCUMENT_SCHEMA, document_id
from llmcore.selection import dedup
from llmcore.selection.split import SplitParams, split
from llmcore.selection.versions import VersionsParams, left, versions
from llmcore.tokens.pack import PackParams, pack
from tests.local_files import LocalFiles, LocalRun

SPLITS = ("train", "validation", "test")
LISTING = pl.Schema({"name": pl.String(), "outcome": pl.String()})
BAD = "lorem"  # what a filter between dedup and split drops


@cache
def passage(number: int) -> str:
    text: str = pl.read_parquet(bundled("sotu.parquet"))["text"][number]
    return text[:1500]


@dataclass(frozen=True)
class Text:
    """A passage with some edits: near each other with the same `base`."""

    base: int
    edits: int = 0
    bad: bool = False

    def __str__(self) -> str:
        words = passage(self.base).split()
        words[3] = f"{words[3]}{self.edits}" if self.edits else words[3]
        return " ".join([*words, BAD] if self.bad else words)


@dataclass
class History:
    """Generations of one source, from number `first` on: name -> text by now, and what each generation brought."""

    root: Path
    first: int = 0
    now: dict[str, Text] = field(default_factory=dict)
    brought: list[dict[str, Text]] = field(default_factory=list)
    gone_at: list[set[str]] = field(default_factory=list)

    def refresh(self, files: Mapping[str, Text]) -> None:
        """Append a generation with what is new or changed."""
        generation = generation_name(self.first + len(self.brought))
        changed = {name: text for name, text in files.items() if str(self.now.get(name, "")) != str(text)}
        gone = self.now.keys() - files.keys()
        outcomes = {name: "changed" if name in self.now else "new" for name in changed} | dict.fromkeys(gone, "gone")
        listing = pl.DataFrame(sorted(outcomes.items()), schema=LISTING, orient="row")
        self._write(f"listings/collect s/collected/{generation}.parquet", listing)
        documents = pl.DataFrame(
            [(identity(name, text), str(text), "s", name) for name, text in sorted(changed.items())],
            schema={name: DOCUMENT_SCHEMA[name] for name in ("id", "text", "source", "url")},
            orient="row",
        )
        made = dedup.signatures(documents, dedup.SignatureParams()).outputs["signatures"]
        self._write(f"signatures/signatures/{generation}-s-00000.parquet", made)
        self._write(f"documents/kept/{generation}-s-00000.parquet", documents)
        self.now, self.brought = dict(files), [*self.brought, changed]
        self.gone_at.append(set(gone))

    def _write(self, name: str, table: Any) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        table.write_parquet(path)

    def decide(self, gone: bool = False) -> Outcome:
        """Run resolve, dedup, a filter, split, versions and pack over all generations."""
        root = self.root / f"after{len(self.brought)}{gone}"
        resolved = LocalRun(root / "resolve")
        brought = {name: LocalFiles(self.root / name) for name in ("signatures", "documents")}
        dedup.resolve(brought, dedup.ResolveParams(), resolved)
        for path in (self.root / "documents/kept").iterdir():
            decisions = pl.read_parquet(resolved.out / "decisions" / path.name)
            unique = dedup.dedup(pl.read_parquet(path), dedup.KeepParams(), decisions).outputs["kept"]
            assert isinstance(unique, pl.DataFrame)
            good = unique.filter(~pl.col("text").str.ends_with(BAD))
            kept = split(good, SplitParams(validation=0.2, test=0.2)).outputs["kept"]
            assert isinstance(kept, pl.DataFrame)
            self._write(f"{root.name}/split/kept/{path.name}", kept)
            for name in SPLITS:
                tokens = kept.filter(pl.col("split") == name).select("id", n_tokens=pl.lit(50, pl.Int64))
                self._write(f"{root.name}/tokens/{name}/{path.name}", tokens)
        inputs = {"documents": LocalFiles(root / "split"), "decisions": LocalFiles(resolved.out)}
        inputs |= {"collected": LocalFiles(self.root / "listings")} if gone else {}
        run = LocalRun(root / "versions")
        params = VersionsParams(gone={"s": "text"} if gone else {})
        metrics = versions(inputs, params, run)
        return Outcome(root, metrics)


@dataclass(frozen=True)
class Outcome:
    root: Path
    metrics: Mapping[str, Any]

    @property
    def decisions(self) -> pl.DataFrame:
        return LocalFiles(self.root / "resolve/out").table("decisions/")

    @property
    def split(self) -> pl.DataFrame:
        return LocalFiles(self.root / "split").table("kept/")

    @property
    def dropped(self) -> dict[str, tuple[str, dict[str, Any]]]:
        table = LocalFiles(self.root / "versions/out").table("dropped/")
        assert table["id"].is_unique().all()
        return {id: (reason, json.loads(detail)) for id, _, reason, detail in table.iter_rows()}

    @property
    def standing(self) -> set[str]:
        return set(self.split["id"]) - set(self.dropped)

    def planned(self) -> set[str]:
        run = LocalRun(self.root / "pack")
        pack(
            {"tokens": LocalFiles(self.root / "tokens"), "versions": LocalFiles(self.root / "versions/out")},
            PackParams(window=64),
            run,
        )
        return set(pl.concat([pl.read_parquet(run.out / f"plan/{name}.parquet") for name in SPLITS])["id"])


def identity(name: str, text: Text) -> str:
    return document_id("s", str(text), name)


A, EDITED, OTHER = Text(0), Text(0, 1), Text(1)


class TestOneChange:
    @pytest.fixture
    def history(self, tmp_path: Path) -> History:
        history = History(tmp_path)
        history.refresh({"a": A, "x": OTHER})
        return history

    def test_a_first_snapshot_leaves_everything_as_it_is(self, history: History) -> None:
        outcome = history.decide()
        assert outcome.dropped == {} and outcome.metrics == {"dropped": 0, "superseded": 0, "gone": 0}
        assert LocalFiles(outcome.root / "versions/out").names() == ["dropped/g000.parquet"]
        assert left(LocalFiles(outcome.root / "versions/out"))["id"].to_list() == []

    def test_an_edit_replaces_what_was_edited_in_its_own_split(self, history: History) -> None:
        history.refresh({"a": EDITED, "x": OTHER})
        outcome = history.decide()
        old, new = identity("a", A), identity("a", EDITED)
        assert outcome.dropped == {old: ("superseded", {"superseded_by": new, "generation": "g001"})}
        assert outcome.planned() == outcome.standing == {new, identity("x", OTHER)}
        splits = dict(outcome.split.select("id", "split").iter_rows())
        assert splits[old] == splits[new]

    def test_so_does_a_page_that_was_written_anew(self, history: History) -> None:
        history.refresh({"a": Text(2), "x": OTHER})
        outcome = history.decide()
        assert outcome.standing == {identity("a", Text(2)), identity("x", OTHER)}
        clusters = dict(outcome.split.select("id", "cluster").iter_rows())
        assert clusters[identity("a", Text(2))] == identity("a", A)

    def test_an_edit_that_the_filters_drop_replaces_nothing(self, history: History) -> None:
        history.refresh({"a": Text(0, 1, bad=True), "x": OTHER})
        assert history.decide().standing == {identity("a", A), identity("x", OTHER)}

    def test_going_back_to_an_older_text_brings_it_back(self, history: History) -> None:
        history.refresh({"a": EDITED, "x": OTHER})
        history.refresh({"a": A, "x": OTHER})
        outcome = history.decide()
        assert outcome.standing == {identity("a", A), identity("x", OTHER)}
        detail = {"superseded_by": identity("a", A), "generation": "g002"}
        assert outcome.dropped[identity("a", EDITED)] == ("superseded", detail)

    def test_the_text_stays_where_a_copy_of_the_old_one_is_current(self, tmp_path: Path) -> None:
        history = History(tmp_path)
        history.refresh({"a": A, "copy": A})
        history.refresh({"a": EDITED, "copy": A})
        assert history.decide().standing == {identity("a", A), identity("a", EDITED)}
        history.refresh({"a": EDITED, "copy": EDITED})
        assert history.decide().standing == {identity("a", EDITED)}

    def test_a_renamed_file_keeps_its_text_also_where_what_is_gone_leaves(self, history: History) -> None:
        history.refresh({"b": A, "x": OTHER})
        assert history.decide(gone=True).standing == {identity("a", A), identity("x", OTHER)}

    def test_what_is_gone_stays_or_leaves_as_configured(self, history: History) -> None:
        history.refresh({"x": OTHER})
        assert history.decide().standing == {identity("a", A), identity("x", OTHER)}
        outcome = history.decide(gone=True)
        assert outcome.dropped == {identity("a", A): ("gone", {"generation": "g001"})}
        history.refresh({"a": A, "x": OTHER})
        assert history.decide(gone=True).dropped == {}

    def test_more_edits_than_a_bucket_holds_all_find_the_newest(self, tmp_path: Path) -> None:
        history = History(tmp_path)
        for edits in range(25):
            history.refresh({"a": Text(0, edits), "x": OTHER})
        history.refresh({"a": Text(0, 24), "x": OTHER, "copy": Text(0, 24)})
        outcome = history.decide()
        assert outcome.standing == {identity("a", Text(0, 24)), identity("x", OTHER)}


texts = st.builds(Text, st.integers(0, 4), st.integers(0, 3), st.just(False) | st.sampled_from([False, False, True]))
states = st.dictionaries(st.sampled_from("abcd"), texts, min_size=1)


numbers = st.sampled_from([0, 997])  # of the first generation: g1000 comes behind g999


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(states, min_size=2, max_size=6), st.booleans(), numbers)
def test_what_is_current_stands_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, generations: Sequence[dict[str, Text]], gone: bool, first: int
) -> None:
    history = History(tmp_path_factory.mktemp("history"), first)
    history.refresh({"keep": Text(9)})  # so that something is always left
    for files in generations:
        history.refresh({**files, "keep": Text(9)})
    outcome = history.decide(gone)
    decided: dict[str, str] = {}
    for id, duplicate_of in outcome.decisions.select("id", "duplicate_of").iter_rows():
        decided.setdefault(id, duplicate_of or id)  # a text that comes again is a duplicate of itself
    reached = set(outcome.split["id"])
    versions_of: dict[str, list[str]] = {}
    for changed in history.brought:
        for name, text in changed.items():
            if decided[identity(name, text)] in reached:
                versions_of.setdefault(name, []).append(identity(name, text))
    current = {name: ids[-1] for name, ids in versions_of.items() if name in history.now or not gone}
    assert outcome.standing == {decided[id] for id in current.values()}
    told = {identity(name, text): str(text) for changed in history.brought for name, text in changed.items()}
    for name, id in current.items():
        newest = history.now.get(name)
        if newest is not None and not newest.bad and id == identity(name, newest):
            ours, theirs = set(str(newest).split()), set(told[decided[id]].split())
            assert len(ours & theirs) > 0.7 * len(ours | theirs)
    for id, (reason, detail) in outcome.dropped.items():
        assert reason in ("superseded", "gone")
        assert detail["generation"] != generation_name(first) and detail.get("superseded_by", "") != id
    assert outcome.split["id"].is_unique().all()


@settings(max_examples=15, deadline=None)
@given(st.lists(states, min_size=2, max_size=5), numbers)
def test_later_generations_change_no_earlier_decision(
    tmp_path_factory: pytest.TempPathFactory, generations: Sequence[dict[str, Text]], first: int
) -> None:
    history = History(tmp_path_factory.mktemp("history"), first)
    for files in generations:
        history.refresh(files)
        outcome = history.decide()
        for earlier in range(1, len(history.brought)):
            before = LocalFiles(history.root / f"after{earlier}False/resolve/out")
            for name in before.names():
                assert before.path(name).read_bytes() == (outcome.root / "resolve/out" / name).read_bytes()


def rows_of_files(root: Path, generations: Sequence[Mapping[str, Sequence[str]]]) -> set[str]:
    """Ids that stand of JSONL files (name -> texts, without addresses) where what is gone leaves."""
    before: dict[str, Sequence[str]] = {}
    for number, files in enumerate(generations):
        generation, rows = generation_name(number), []
        for name in sorted({*files, *before}):
            if files.get(name) == before.get(name):
                continue
            outcome = "gone" if name not in files else "changed" if name in before else "new"
            rows.append((f"{name}.jsonl", outcome))
            if name in files:
                shard = f"{generation}-s-{name}-00000.parquet"
                lines = [(document_id("s", text), text, "s", None) for text in files[name]]
                schema = {column: DOCUMENT_SCHEMA[column] for column in ("id", "text", "source", "url")}
                documents = pl.DataFrame(lines, schema=schema, orient="row")
                made = dedup.signatures(documents, dedup.SignatureParams()).outputs["signatures"]
                (root / "signatures").mkdir(parents=True, exist_ok=True)
                (root / "kept").mkdir(parents=True, exist_ok=True)
                assert isinstance(made, pl.DataFrame)
                made.write_parquet(root / "signatures" / shard)
                documents.write_parquet(root / "kept" / shard)
        (root / "collect s/collected").mkdir(parents=True, exist_ok=True)
        listing = pl.DataFrame(rows, schema=LISTING, orient="row")
        listing.write_parquet(root / f"collect s/collected/{generation}.parquet")
        before = dict(files)
    resolved, run = LocalRun(root / "resolve"), LocalRun(root / "versions")
    brought = {"signatures": Under(root, "signatures/"), "documents": Under(root, "kept/")}
    dedup.resolve(brought, dedup.ResolveParams(), resolved)
    inputs = {"documents": Under(root, "kept/"), "decisions": LocalFiles(resolved.out)}
    versions({**inputs, "collected": Under(root, "collect s/")}, VersionsParams(gone={"s": "jsonl"}), run)
    kept = LocalFiles(resolved.out).table("decisions/").filter("keep")["id"]
    return set(kept) - set(left(LocalFiles(run.out))["id"])


@dataclass
class Under(LocalFiles):
    """The files below one folder, under their full names."""

    folder: str

    def names(self, prefix: str = "") -> Sequence[str]:
        return super().names(prefix or self.folder)


def test_of_a_file_of_many_documents_those_leave_that_it_no_longer_holds(tmp_path: Path) -> None:
    one, two, three = (passage(number) for number in range(3))
    ids = {text: document_id("s", text) for text in (one, two, three)}
    states = ({"f": [one, two], "h": [three]}, {"f": [one], "h": [three]}, {"h": [three]})
    assert rows_of_files(tmp_path / "a", states[:2]) == {ids[one], ids[three]}
    assert rows_of_files(tmp_path / "b", states) == {ids[three]}
    assert rows_of_files(tmp_path / "c", [*states, {"h": [three], "f": [two]}]) == {ids[three], ids[two]}


def test_the_same_path_on_another_host_replaces_only_what_it_is_near(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.refresh({"http://a.org/": A, "http://b.org/": OTHER})
    history.refresh({"http://a.org/": A, "http://b.org/": OTHER, "https://a.org/": EDITED, "http://c.org/": Text(2)})
    outcome = history.decide()
    expected = {("https://a.org/", EDITED), ("http://b.org/", OTHER), ("http://c.org/", Text(2))}
    assert outcome.standing == {identity(name, text) for name, text in expected}


def test_a_page_that_a_recrawl_finds_gone_leaves_until_it_comes_back(tmp_path: Path) -> None:
    url = "http://a.org/x"
    history = History(tmp_path)
    history.refresh({url: A, "http://a.org/y": OTHER})
    history.refresh({url: A, "http://a.org/y": OTHER, "http://a.org/z": Text(2)})
    outcome = history.decide()
    inputs = {"documents": LocalFiles(outcome.root / "split"), "decisions": LocalFiles(outcome.root / "resolve/out")}

    def left_after(*outcomes: str) -> list[str]:
        root = tmp_path / "-".join(("left", *outcomes))
        (root / "crawl s/fetches").mkdir(parents=True)
        for number, found in enumerate(outcomes):
            table = pl.DataFrame({"url": [url, "http://a.org/y"], "outcome": [found, "failed"]})
            table.write_parquet(root / f"crawl s/fetches/{generation_name(number)}.parquet")
        run = LocalRun(root / "run")
        fetches = {"fetches": Under(root, "crawl s/")}
        versions({**inputs, **fetches}, VersionsParams(gone={"s": "crawl"}), run)
        return left(LocalFiles(run.out))["id"].to_list()

    assert left_after("fetched", "unchanged") == left_after("fetched", "failed") == []
    assert left_after("fetched", "gone") == left_after("fetched", "gone", "failed") == [identity(url, A)]
    assert left_after("fetched", "gone", "fetched") == []
