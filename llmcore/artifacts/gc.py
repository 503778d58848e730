"""What no ref reaches: artifacts, memos, blobs, scratch and leases."""

from __future__ import annotations

from datetime import timedelta

from llmcore.artifacts.lineage import manifests_behind
from llmcore.artifacts.manifest import Manifest, manifest_name, read_manifest
from llmcore.artifacts.store import Entry, Store, blob_name, suffix_of

# a run under way has blobs and memos that no manifest names yet
YOUNGEST = timedelta(hours=24)


def garbage(store: Store, older_than: timedelta = YOUNGEST) -> list[Entry]:
    """Objects that no ref reaches and that were written more than `older_than` ago, in the order to delete them in.

    Manifests go before the memos and blobs they name, so that an interrupted collection leaves no broken artifact.
    """
    tops: list[Manifest] = []
    for _, ref in store.refs():
        for place in (ref, *ref.get("fetched", {}).values()):
            manifest = read_manifest(store, place["stage"], place["key"])
            if manifest is not None:
                tops.append(manifest)
    kept = manifests_behind(store, tops)
    reachable = {manifest_name(manifest.stage, manifest.key) for manifest in kept}
    blobs = {blob_name(o.blob, suffix_of(name)) for manifest in kept for name, o in manifest.outputs.items()}

    last_moment = store.backend.now() - older_than

    def old(prefix: str) -> list[Entry]:
        return [entry for entry in store.backend.entries(prefix) if entry.written <= last_moment]

    def useless(memo: Entry) -> bool:
        outputs = (store.record(memo.name) or {}).get("outputs", {})
        return any(blob_name(output["blob"], suffix_of(name)) not in blobs for name, output in outputs.items())

    return [
        *(entry for entry in old("artifacts/") if entry.name not in reachable),
        *(entry for entry in old("memo/") if useless(entry)),
        *old("runs/"),
        *(entry for entry in old("blobs/") if entry.name not in blobs),
    ]
