"""Does everything behind an artifact hold what its record says?"""

from __future__ import annotations

from collections.abc import Iterator

from llmcore.artifacts.lineage import manifests_behind
from llmcore.artifacts.manifest import Manifest
from llmcore.artifacts.store import Store, blob_name, suffix_of


def verify(store: Store, top: Manifest) -> Iterator[tuple[Manifest, str, str]]:
    """Re-hash every blob behind an artifact; yield (artifact, file, what is wrong) for each that differs.

    Manifests were checked against their own hashes when they were read. Each blob is read once, afresh from the store.
    """
    seen: set[str] = set()
    nodes = manifests_behind(store, [top])
    digests = {(node.stage, node.key): node.digest for node in nodes}
    for manifest in nodes:
        for items in manifest.inputs.values():
            for item in items:
                if digests[item["stage"], item["key"]] != item["digest"]:
                    yield manifest, item["step"], f"{item['step']} was made anew since, and differs from what was read"
        for name, output in manifest.outputs.items():
            blob = blob_name(output.blob, suffix_of(name))
            if blob in seen:
                continue
            seen.add(blob)
            entry = store.backend.entry(blob)
            if entry is None:
                yield manifest, name, f"{blob} is missing"
            elif entry.bytes != output.bytes or not store.blob_is_sound(output.blob, suffix_of(name)):
                yield manifest, name, f"{blob} does not hash to its name"
