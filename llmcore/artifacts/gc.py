"""What no ref reaches: artifacts, memos, blobs, scratch and leases."""

from __future__ import annotations

from datetime import timedelta

from llmcore.artifacts.backends import Entry
from llmcore.artifacts.lineage import manifests_behind
from llmcore.artifacts.manifest import Manifest, manifest_name, read_manifest
from llmcore.artifacts.store import Store, blob_name, suffix_of

# a run under way has blobs and memos that no manifest names yet
YOUNGEST = timedelta(hours=24)


def garbage(store: Store, older_than: timedelta = YOUNGEST) -> list[Entry]:
    """Objects that no ref reaches and that were written more than `older_than` ago, in the order to delete them in.

    What an artifact or memo of the last `older_than` names stays too, and the whole scratch of a run that wrote any.
    Manifests go before the memos and blobs they name, so that an interrupted collection leaves no broken artifact.
    """
    tops: list[Manifest] = []
    for _, ref in store.refs():
        for place in (ref, *ref.get("fetched", {}).values()):
            manifest = read_manifest(store, place["stage"], place["key"])
            if manifest is not None:
                tops.append(manifest)
    last_moment = store.backend.now() - older_than
    for entry in store.backend.entries("artifacts/"):
        if entry.written > last_moment:
            _, stage, key = entry.name.removesuffix(".json").split("/")
            young = read_manifest(store, stage, key)
            if young is not None:
                tops.append(young)
    kept = manifests_behind(store, tops)
    reachable = {manifest_name(manifest.stage, manifest.key) for manifest in kept}
    blobs = {blob_name(o.blob, suffix_of(name)) for manifest in kept for name, o in manifest.outputs.items()}
    # a blob may be older than the memo that names it: the same bytes came out again
    memos = [entry for entry in store.backend.entries("memo/") if entry.written > last_moment]
    blobs |= {blob for entry in memos for blob in _blobs_of(store, entry)}
    at_work = {entry.name.split("/")[1] for entry in store.backend.entries("runs/") if entry.written > last_moment}

    def old(prefix: str) -> list[Entry]:
        return [entry for entry in store.backend.entries(prefix) if entry.written <= last_moment]

    return [
        *(entry for entry in old("artifacts/") if entry.name not in reachable),
        *(entry for entry in old("memo/") if not blobs.issuperset(_blobs_of(store, entry))),
        *(entry for entry in old("runs/") if entry.name.split("/")[1] not in at_work),
        *(entry for entry in old("blobs/") if entry.name not in blobs),
    ]


def _blobs_of(store: Store, memo: Entry) -> set[str]:
    outputs = (store.record(memo.name) or {}).get("outputs", {})
    return {blob_name(output["blob"], suffix_of(name)) for name, output in outputs.items()}
