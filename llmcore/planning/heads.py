"""The names that runs leave behind: `NAME`, a published model, and `datasets/NAME`, the head refreshes go on from.

A head only ever moves to a descendant: snapshots that go on from those it names. Whoever wants to begin anew says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmcore.artifacts import roots
from llmcore.artifacts.keys import difference
from llmcore.artifacts.lineage import ref_of
from llmcore.artifacts.manifest import ArtifactRef, Manifest, manifest_of
from llmcore.artifacts.recipe import Recipe, Step
from llmcore.artifacts.store import Store
from llmcore.errors import LlmcoreError, UsageError
from llmcore.planning.chain import Chain, build, fetching
from llmcore.planning.config import PipelineConfig
from llmcore.planning.resume import find

FETCH = "fetch"


def dataset_ref(name: str) -> str:
    return f"datasets/{name}"


@dataclass(frozen=True)
class Head:
    """A dataset as it stands: the snapshots of the outside world behind it, step by step.

    number:      moves on with every change; 0 where there is no dataset yet.
    generations: how many there are; the next one gets this number.
    """

    number: int
    fetched: Mapping[str, ArtifactRef]
    generations: int


def head_of(store: Store, name: str) -> Head:
    """The head of `datasets/NAME`; an empty one if there is no such dataset yet."""
    ref = roots.ref(store, dataset_ref(name))
    if ref is None:
        return Head(0, {}, 0)
    fetched = {step: ref_of(store, edge) for step, edge in ref.record["fetched"].items()}
    counts = [1 + max(_generations(manifest_of(store, found)), default=0) for found in fetched.values()]
    return Head(ref.number, fetched, max(counts, default=1))


def existing_head(store: Store, name: str) -> Head:
    """The head of a dataset that must be there. UsageError if it is not."""
    head = head_of(store, name)
    if not head.fetched:
        raise UsageError(f"no dataset {name!r} in {store.uri} yet; run the pipeline or the dataset flow first")
    return head


def chain_on_head(
    store: Store, config: PipelineConfig, reset: bool = False, resume: str | None = None
) -> tuple[Chain, Head]:
    """The chain of a run over a configuration's sources, going on from the dataset's head (or, with `reset`, not).

    resume: key of another training, from whose checkpoint this one goes on.
    Raises UsageError where it would not go on from the head; see `snapshot_for`.
    """
    head = head_of(store, config.name)
    checkpoint = find(store, resume) if resume is not None else None
    if reset or not head.fetched:
        return build(config, resume=checkpoint), head
    pinned = snapshot_for(store, config.name, fetching(config), head)
    return build(config, snapshot=pinned, generation=head.generations, resume=checkpoint), head


def chain_of_head(store: Store, config: PipelineConfig, resume: str | None = None) -> tuple[Chain, Head]:
    """The chain over a dataset as it stands; nothing is fetched. UsageError if there is none.

    resume: key of another training, from whose checkpoint this one goes on.
    """
    head = existing_head(store, config.name)
    checkpoint = find(store, resume) if resume is not None else None
    return build(config, snapshot=head.fetched, resume=checkpoint), head


def chain_behind_head(store: Store, config: PipelineConfig, label: str | None = None) -> tuple[Chain, Head]:
    """The chain that appends what changed outside to a dataset. UsageError if there is none."""
    head = existing_head(store, config.name)
    return build(config, previous=head.fetched, label=label, generation=head.generations), head


def snapshot_for(store: Store, name: str, fetching: Mapping[str, Step], head: Head) -> dict[str, ArtifactRef]:
    """The head's snapshots for a run whose first steps are `fetching`: what it goes on with instead of fetching anew.

    A source that the head does not know is fetched as a generation of its own. Raises UsageError where a source was
    fetched otherwise, or is not asked for any more: then the run would not go on from the head.
    """
    pinned = {}
    for step, found in head.fetched.items():
        if step not in fetching:
            raise UsageError(
                f"sources: {step.split(' ', 1)[-1]!r} is part of dataset {name!r} but no source any more; put it back, "
                "give the configuration another name, or begin anew with --reset-head"
            )
        asked = Recipe(fetching[step], {}).identity
        line = list(_snapshots_behind(store, manifest_of(store, found)))
        if not any(_asks_for(asked, manifest) for manifest in line):
            raise UsageError(
                f"{step}: dataset {name!r} was made of another snapshot ({_changes(line[-1].identity, asked)}); "
                "append what changed with `llmcore refresh`, or begin anew with --reset-head"
            )
        pinned[step] = found
    return pinned


def remember_model(store: Store, name: str, done: Mapping[str, ArtifactRef]) -> None:
    """Point the ref NAME to the published artifact, if the run came that far."""
    if "publish" not in done:
        return
    record, current = done["publish"].plain(), roots.ref(store, name)
    if current is None or any(current.record.get(field) != value for field, value in record.items()):
        roots.set_ref(store, name, record)


def remember_dataset(store: Store, name: str, done: Mapping[str, ArtifactRef], head: Head, reset: bool = False) -> None:
    """Move `datasets/NAME` from `head` to the packed dataset and the snapshots behind it.

    Nothing happens if the run did not come that far. Raises LlmcoreError if these snapshots do not go on from the head
    as it stands by now (somebody refreshed meanwhile), unless `reset`.
    """
    if "pack" not in done:
        return
    fetched = _fetched(store, done)
    record = done["pack"].plain() | {"fetched": {step: ref.plain() for step, ref in sorted(fetched.items())}}
    while True:
        if not reset and not _goes_on_from(store, head, fetched):
            raise LlmcoreError(
                f"dataset {name!r} has moved on since this run began, and what was made does not go on from it; "
                "run again, or make it the head with --reset-head"
            )
        current = roots.ref(store, dataset_ref(name))
        if current is not None and _plain(current.record) == _plain(record):
            return
        if roots.set_ref(store, dataset_ref(name), record, after=head.number):
            return
        head = head_of(store, name)


def _fetched(store: Store, done: Mapping[str, ArtifactRef]) -> dict[str, ArtifactRef]:
    return {
        step: ref
        for step, ref in done.items()
        if not step.startswith("previous ") and manifest_of(store, ref).role == FETCH
    }


def _plain(record: Mapping[str, Any]) -> Any:
    edges = {step: (edge["key"], edge.get("seal")) for step, edge in record["fetched"].items()}
    return record["key"], record.get("seal"), edges


def _goes_on_from(store: Store, head: Head, fetched: Mapping[str, ArtifactRef]) -> bool:
    for step, was in head.fetched.items():
        if step not in fetched:
            return False
        line = _snapshots_behind(store, manifest_of(store, fetched[step]))
        if all(manifest.key != was.key for manifest in line):
            return False
    return True


def _snapshots_behind(store: Store, newest: Manifest) -> Iterator[Manifest]:
    """A snapshot, the one that it refreshed, and so on to the first."""
    manifest: Manifest | None = newest
    while manifest is not None:
        yield manifest
        earlier = manifest.inputs.get("previous", ())
        manifest = manifest_of(store, ref_of(store, earlier[0])) if earlier else None


def _asks_for(asked: Mapping[str, Any], made: Manifest) -> bool:
    """Whether a snapshot was made with these parameters, by whatever version of the stage (new parameters aside)."""
    now, was = asked["params"], made.identity["params"]
    return bool(asked["stage"] == made.stage and was == {name: now.get(name) for name in was})


def _changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    fields = [name.removeprefix("params.") for name, *_ in difference(was, now) if not name.startswith("inputs")]
    return f"{', '.join(fields[:3])}{f' and {len(fields) - 3} more' if len(fields) > 3 else ''} changed"


def _generations(fetched: Manifest) -> Iterator[int]:
    return (int(number) for folder in fetched.folders.values() for number in folder.generations)
