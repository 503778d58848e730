"""The names that runs leave behind: `NAME`, a published model, and `datasets/NAME`, the head refreshes go on from.

A head only ever moves to a descendant: snapshots that go on from those it names. Whoever wants to begin anew says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmcore.artifacts import roots
from llmcore.artifacts.keys import difference
from llmcore.artifacts.lineage import ref_of
from llmcore.artifacts.manifest import ArtifactRef, Manifest, manifest_of
from llmcore.artifacts.recipe import Step, plain_params
from llmcore.artifacts.store import Store
from llmcore.errors import LlmcoreError, UsageError
from llmcore.planning.chain import Chain, build, fetch_step, fetching
from llmcore.planning.config import FileSource, PipelineConfig
from llmcore.planning.resume import find
from llmcore.planning.targets import decided

FETCH = "fetch"
LABEL = "snapshot"  # the parameter that a refresh sets anew in every crawl


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
    config, head = decided(store, config), head_of(store, config.name)
    checkpoint = find(store, resume) if resume is not None else None
    if reset or not head.fetched:
        return build(config, resume=checkpoint), head
    check_sources(store, config, head)
    pinned = snapshot_for(store, config.name, fetching(config), head)
    return build(config, snapshot=pinned, generation=head.generations, resume=checkpoint), head


def chain_of_head(store: Store, config: PipelineConfig, resume: str | None = None) -> tuple[Chain, Head]:
    """The chain over a dataset as it stands; nothing is fetched. UsageError if there is none, or of other sources.

    resume: key of another training, from whose checkpoint this one goes on.
    """
    config, head = decided(store, config), existing_head(store, config.name)
    check_sources(store, config, head)
    for source in config.sources:
        if fetch_step(source) not in head.fetched:
            raise UsageError(
                f"sources: {source.name!r} is no part of dataset {config.name!r} yet; append it with `llmcore refresh`"
            )
    checkpoint = find(store, resume) if resume is not None else None
    return build(config, snapshot=head.fetched, resume=checkpoint), head


def chain_behind_head(store: Store, config: PipelineConfig, label: str | None = None) -> tuple[Chain, Head]:
    """The chain that appends what changed outside to a dataset. UsageError if there is none, or not of these sources.

    A source whose files are all as they were keeps its snapshot, so that a refresh that finds nothing leaves no trace.
    """
    config, head = decided(store, config), existing_head(store, config.name)
    check_sources(store, config, head)
    kept = {}
    for source in config.sources:
        found = head.fetched.get(fetch_step(source))
        if found is not None and isinstance(source, FileSource):
            params, _ = source.scan()
            if not _changed(plain_params(params), manifest_of(store, found)):
                kept[fetch_step(source)] = found
    previous = {step: found for step, found in head.fetched.items() if step not in kept}
    return build(config, snapshot=kept, previous=previous, label=label, generation=head.generations), head


def check_sources(store: Store, config: PipelineConfig, head: Head) -> None:
    """Raise UsageError where a configuration can go on from no snapshot of the head, whatever the sources hold."""
    asked = {fetch_step(source): source for source in config.sources}
    for step, found in head.fetched.items():
        if step not in asked:
            raise UsageError(
                f"sources: {step.split(' ', 1)[-1]!r} is part of dataset {config.name!r} but no source any more; put "
                "it back, give the configuration another name, or begin anew with `llmcore dataset --reset-head`"
            )
        source, params = asked[step], manifest_of(store, found).identity["params"]
        if isinstance(source, FileSource) and source.kind != params["kind"]:
            raise UsageError(
                f"{step}: dataset {config.name!r} holds its files as kind {params['kind']}, not {source.kind}; put the "
                "kind back, or begin anew with `llmcore dataset --reset-head`"
            )


def snapshot_for(store: Store, name: str, fetching: Mapping[str, Step], head: Head) -> dict[str, ArtifactRef]:
    """The head's snapshots for a run whose first steps are `fetching`: what it goes on with instead of fetching anew.

    A source that the head does not know is fetched as a generation of its own. Raises UsageError where a source's
    newest snapshot was fetched otherwise: then the run would not go on from the head.
    """
    for step, found in head.fetched.items():
        asked = plain_params(fetching[step].params)
        line = list(_snapshots_behind(store, manifest_of(store, found)))
        labels = [manifest.identity["params"].get(LABEL) for manifest in line]
        if asked.get(LABEL) not in labels:
            raise UsageError(
                f"{step}: dataset {name!r} has no snapshot {asked[LABEL]!r}; begin anew with --reset-head, or put "
                f"{LABEL} back to {labels[-1]!r}"
            )
        changed = _changed(asked, line[0])
        if changed:
            raise UsageError(
                f"{step}: dataset {name!r} was made of another snapshot ({_brief(changed)} changed); "
                "append what changed with `llmcore refresh`, or begin anew with --reset-head"
            )
    return dict(head.fetched)


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


def _changed(asked: Mapping[str, Any], made: Manifest) -> list[str]:
    """The parameters in which a snapshot differs from what is asked for.

    By whatever version of the stage it was made: parameters that are new since, and the label, decide nothing.
    """
    was = {name: value for name, value in made.identity["params"].items() if name != LABEL}
    return [name for name, *_ in difference(was, {name: asked.get(name) for name in was})]


def _brief(fields: Sequence[str]) -> str:
    return f"{', '.join(fields[:3])}{f' and {len(fields) - 3} more' if len(fields) > 3 else ''}"


def _generations(fetched: Manifest) -> Iterator[int]:
    return (int(number) for folder in fetched.folders.values() for number in folder.generations)
