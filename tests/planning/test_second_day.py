"""What may change between one run and the next: sources, their settings, their files, and back again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from llmcore.account.trace import trace
from llmcore.artifacts import roots, runner
from llmcore.artifacts.manifest import ArtifactRef, manifest_of
from llmcore.artifacts.recipe import resolve
from llmcore.artifacts.store import Store, open_store
from llmcore.errors import UsageError
from llmcore.planning.chain import Chain
from llmcore.planning.config import load
from llmcore.planning.heads import (
    Head,
    chain_behind_head,
    chain_of_head,
    chain_on_head,
    dataset_ref,
    remember_dataset,
)
from tests.small import small_config

NOTES: dict[str, Any] = {"kind": "text", "name": "notes", "path": "texts", "licence": "CC0-1.0"}
MORE = NOTES | {"name": "more", "path": "more"}
SITE = {"kind": "crawl", "name": "site", "start_urls": ["http://127.0.0.1:18766/"], "serve": "folder"}


class Days:
    """A small configuration that changes, and its dataset."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "more").mkdir()
        (folder / "more/one.txt").write_text("A text of another source.")
        (folder / "site").mkdir()
        (folder / "site/index.html").write_text("<html><body><p>A page that stays as it is.</p></body></html>")

    @property
    def store(self) -> Store:
        return open_store(f"file://{self.folder}/store")

    def config(self, *sources: Mapping[str, Any]) -> Any:
        served = [{"serve_path": str(self.folder / "site")} if source["kind"] == "crawl" else {} for source in sources]
        return load(
            small_config(self.folder, sources=[{**one, **more} for one, more in zip(sources, served, strict=True)])
        )

    def head(self) -> Mapping[str, Any]:
        found = roots.ref(self.store, dataset_ref("small"))
        assert found is not None
        return found.record

    def run(self, *sources: Mapping[str, Any]) -> list[str]:
        return self._go(*chain_on_head(self.store, self.config(*sources)))

    def refresh(self, *sources: Mapping[str, Any], label: str = "second") -> list[str]:
        return self._go(*chain_behind_head(self.store, self.config(*sources), label))

    def _go(self, chain: Chain, head: Head) -> list[str]:
        """The steps that fetched something. One step more stands in for those up to `pack`: no later one matters."""
        done: dict[str, ArtifactRef] = dict(chain.pinned)
        fetched = []
        for step in chain.until("ingest"):
            if step.name not in done:
                recipe = resolve(self.store, step, done)
                if step.stage.role == "fetch" and runner.find(self.store, recipe) is None:
                    fetched.append(step.name)
                done[step.name] = runner.build(self.store, recipe)
        remember_dataset(self.store, "small", done | {"pack": done[step.name]}, head)
        return fetched


@pytest.fixture
def days(tmp_path: Path) -> Days:
    return Days(tmp_path)


def test_a_crawl_whose_settings_changed_is_refreshed_once_and_runs_again(days: Days) -> None:
    days.run(SITE)
    changed = SITE | {"licence": "MIT"}
    with pytest.raises(UsageError, match=r"crawl site: .* \(licence changed\); append what changed with .*refresh"):
        days.run(changed)
    assert days.refresh(changed) == ["crawl site"]
    assert days.run(changed) == []
    with pytest.raises(UsageError, match="licence changed"):
        days.run(SITE)


def test_a_crawl_with_a_new_label_is_told_that_only_a_new_beginning_helps(days: Days) -> None:
    days.run(SITE)
    days.refresh(SITE)
    with pytest.raises(UsageError, match=r"no snapshot 'autumn'; begin anew with --reset-head, or put .* to 'first'"):
        days.run(SITE | {"snapshot": "autumn"})


def test_files_that_went_back_to_what_they_were_are_not_taken_for_the_newest(days: Days) -> None:
    days.run(NOTES)
    page = days.folder / "texts/003.txt"
    before = page.read_text()
    small = days.config(NOTES)
    for text, found in ((f"{before} And more.", ["collect notes"]), (before, [])):
        page.write_text(text)
        if found:
            assert days._go(*chain_behind_head(days.store, small)) == found
    with pytest.raises(UsageError, match=r"\(files\.003\.txt changed\); append what changed with `llmcore refresh`"):
        chain_on_head(days.store, small)
    assert days._go(*chain_behind_head(days.store, small)) == ["collect notes"]
    assert days._go(*chain_on_head(days.store, small)) == []


def test_the_line_names_what_changed_since_the_last_refresh_and_nothing_older(days: Days) -> None:
    days.run(NOTES)
    small = days.config(NOTES)
    (days.folder / "texts/003.txt").write_text("Refreshed.")
    days._go(*chain_behind_head(days.store, small))
    (days.folder / "texts/004.txt").write_text("Not yet refreshed.")
    with pytest.raises(UsageError, match=r"another snapshot \(files\.004\.txt changed\)"):
        chain_on_head(days.store, small)


def test_training_fetches_no_source_that_the_dataset_does_not_have_yet(days: Days) -> None:
    days.run(NOTES)
    with pytest.raises(UsageError, match="'more' is no part of dataset 'small' yet; append it with `llmcore refresh`"):
        chain_of_head(days.store, days.config(NOTES, MORE))
    assert days.refresh(NOTES, MORE) == ["collect more"]
    chain, _ = chain_of_head(days.store, days.config(NOTES, MORE))
    assert set(chain.pinned) == {"collect notes", "collect more"}


def test_a_source_that_is_missing_stops_every_command_before_anything_is_done(days: Days) -> None:
    days.run(NOTES, MORE)
    small = days.config(NOTES)
    for chain in (chain_on_head, chain_of_head, chain_behind_head):
        with pytest.raises(UsageError, match="'more' is part of dataset 'small' but no source any more"):
            chain(days.store, small)


def test_files_of_another_kind_stop_every_command_before_anything_is_done(days: Days) -> None:
    days.run(NOTES)
    (days.folder / "texts/page.html").write_text("<html><body>A page.</body></html>")
    html = days.config(NOTES | {"kind": "html"})
    for chain in (chain_on_head, chain_of_head, chain_behind_head):
        with pytest.raises(UsageError, match=r"collect notes: .* holds its files as kind text, not html"):
            chain(days.store, html)


def test_a_refresh_that_finds_nothing_leaves_the_head_and_everything_behind_it(days: Days) -> None:
    days.run(NOTES)
    before = days.head()
    assert days.refresh(NOTES) == []
    assert days.head() == before
    days.run(NOTES, MORE)
    (days.folder / "more/two.txt").write_text("A text that came later.")
    notes = days.head()["fetched"]["collect notes"]
    assert days.refresh(NOTES, MORE) == ["collect more"]
    assert days.head()["fetched"]["collect notes"] == notes
    generations = manifest_of(
        days.store, chain_of_head(days.store, days.config(NOTES, MORE))[1].fetched["collect more"]
    )
    assert [name for name in generations.outputs if name.startswith("raw/")] == [
        "raw/g001-00000.parquet",
        "raw/g002-00000.parquet",
    ]


def test_a_dataset_that_was_forgotten_begins_anew(days: Days) -> None:
    days.run(NOTES)
    roots.drop_ref(days.store, dataset_ref("small"))
    chain, head = chain_on_head(days.store, days.config(NOTES))
    assert head.number == 0 and not chain.pinned
    assert roots.set_ref(days.store, dataset_ref("small"), {"stage": "pack", "key": "0" * 64}, after=head.number)


def test_a_dataset_that_0_1_made_is_run_refreshed_and_traced(days: Days) -> None:
    days.run(NOTES)
    head = days.head()
    shutil.rmtree(days.folder / "store/roots")
    as_0_1_wrote_it(days.folder / "store", head)
    assert [row.step for row in trace(days.store, url="003.txt")][:1] == ["ingest notes"]
    assert days.run(NOTES) == []
    small = days.config(NOTES, MORE)
    (days.folder / "texts/003.txt").write_text("Another text by now.")
    assert days._go(*chain_behind_head(days.store, small)) == ["collect notes", "collect more"]


def as_0_1_wrote_it(store: Path, head: Mapping[str, Any]) -> None:
    """Take from a store's records what they did not have then: seals, roles, listings, folders; refs were files."""

    def older(edge: Mapping[str, Any]) -> dict[str, Any]:
        return {name: edge[name] for name in ("stage", "key", "digest")}

    for path in (store / "artifacts").rglob("*.json"):
        record = json.loads(path.read_text())
        for name in ("seal", "role", "listing", "folders"):
            del record[name]
        steps = {
            role: [{**older(edge), "step": edge["step"]} for edge in edges] for role, edges in record["inputs"].items()
        }
        path.unlink()
        path.write_text(json.dumps(record | {"inputs": steps}))
    (store / "refs/datasets").mkdir(parents=True)
    fetched = {step: older(edge) for step, edge in head["fetched"].items()}
    (store / "refs/datasets/small.json").write_text(json.dumps({**older(head), "fetched": fetched}))
