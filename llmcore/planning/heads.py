"""The names that runs leave behind: `NAME`, a published model, and `datasets/NAME`, the head refreshes go on from."""

from __future__ import annotations

from collections.abc import Mapping

from llmcore.artifacts.lineage import manifests_behind
from llmcore.artifacts.manifest import ArtifactRef, manifest_of
from llmcore.artifacts.store import Store
from llmcore.errors import UsageError

FETCHING = ("crawl", "collect")


def dataset_ref(name: str) -> str:
    return f"datasets/{name}"


def remember_model(store: Store, name: str, done: Mapping[str, ArtifactRef]) -> None:
    """Point the ref NAME to the published artifact, if the run came that far."""
    if "publish" in done:
        store.set_ref(name, done["publish"].plain())


def remember_dataset(store: Store, name: str, done: Mapping[str, ArtifactRef]) -> None:
    """Point `datasets/NAME` to the packed dataset and to the snapshots of the outside world behind it.

    A head that already goes on from these snapshots stays: running the first recipe again must not undo a refresh.
    """
    if "pack" not in done:
        return
    fetched = {step: ref for step, ref in done.items() if ref.stage in FETCHING and not step.startswith("previous ")}
    head = store.ref(dataset_ref(name))
    if head is not None and _goes_on_from(store, head["fetched"], fetched):
        return
    store.set_ref(
        dataset_ref(name),
        done["pack"].plain() | {"fetched": {step: ref.plain() for step, ref in sorted(fetched.items())}},
    )


def head_of(store: Store, name: str) -> dict[str, ArtifactRef]:
    """The crawl and collect artifacts behind `datasets/NAME`. UsageError if there is no such dataset yet."""
    head = store.ref(dataset_ref(name))
    if head is None:
        raise UsageError(f"no dataset {name!r} in {store.uri} yet; run the pipeline or the dataset flow first")
    return {step: ArtifactRef(store=store.uri, **ref) for step, ref in head["fetched"].items()}


def _goes_on_from(store: Store, head: Mapping[str, Mapping[str, str]], fetched: Mapping[str, ArtifactRef]) -> bool:
    if head.keys() != fetched.keys() or all(head[step]["key"] == ref.key for step, ref in fetched.items()):
        return False
    for step, ref in fetched.items():
        newest = manifest_of(store, ArtifactRef(store=store.uri, **head[step]))
        if all(manifest.key != ref.key for manifest in manifests_behind(store, [newest])):
            return False
    return True
