"""The graph behind an artifact."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from llmcore.artifacts.manifest import ArtifactRef, Manifest, manifest_of
from llmcore.artifacts.store import Store

Place = tuple[str, str, str]  # stage, key, seal


def manifests_behind(store: Store, tops: Iterable[Manifest]) -> list[Manifest]:
    """The artifacts given and everything they were made from, each once, sources first."""
    read: dict[Place, Manifest] = {}
    order: dict[Place, Manifest] = {}
    waiting: list[tuple[Place, Manifest | None]] = []
    for top in reversed(list(tops)):
        read[_place(top.edge())] = top
        waiting.append((_place(top.edge()), None))
    while waiting:
        place, inputs_done = waiting.pop()
        if inputs_done is not None:
            order[place] = inputs_done
        elif place not in order:
            manifest = read.get(place) or manifest_of(store, ArtifactRef(*place[:2], "", store.uri, place[2]))
            read[place] = manifest
            waiting.append((place, manifest))
            edges = [edge for edges in manifest.inputs.values() for edge in edges]
            waiting += [(_place(edge), None) for edge in reversed(edges) if _place(edge) not in order]
    return list(order.values())


def _place(edge: Mapping[str, str]) -> Place:
    return edge["stage"], edge["key"], edge.get("seal", "")


def ref_of(store: Store, edge: Mapping[str, str]) -> ArtifactRef:
    """The reference that an edge (or a ref's record) of a manifest means."""
    return ArtifactRef(edge["stage"], edge["key"], edge["digest"], store.uri, edge.get("seal", ""))
