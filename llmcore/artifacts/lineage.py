"""The graph behind an artifact."""

from __future__ import annotations

from collections.abc import Iterable

from llmcore.artifacts.manifest import ArtifactRef, Manifest, manifest_of
from llmcore.artifacts.store import Store


def manifests_behind(store: Store, tops: Iterable[Manifest]) -> list[Manifest]:
    """The artifacts given and everything they were made from, each once, sources first."""
    order: dict[tuple[str, str], Manifest] = {}

    def visit(manifest: Manifest) -> None:
        name = (manifest.stage, manifest.key)
        if name in order:
            return
        for items in manifest.inputs.values():
            for item in items:
                if (item["stage"], item["key"]) not in order:
                    visit(manifest_of(store, ArtifactRef(item["stage"], item["key"], item["digest"], store.uri)))
        order[name] = manifest

    for top in tops:
        visit(top)
    return list(order.values())
