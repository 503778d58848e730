"""lineage.json: the bill of materials that travels with a model.

    {"format": "llmcore-lineage/1",
     "name": …, "licence": …,
     "files":   {file name: {"sha256", "bytes"}}          every file of the folder but this one, and run.html beside it
     "nodes":   [{"id", "step", "stage", "version", "key", "digest", "params", "metrics", "outputs", "more_outputs"}]
     "edges":   [{"from": id, "to": id, "role"}]           an input of a node; the model itself is the node "published"
     "sources": [{"source", "licence", "documents", "bytes", "trained_documents", "trained_bytes"}]}

key:     SHA-256 of {stage, version, params, input digests} as canonical JSON: what decided the outcome.
digest:  SHA-256 of {output file name: SHA-256 of its bytes}: what the artifact contains.
outputs: {file name: {"sha256", "bytes", "rows"}}, at most 200 of them; `more_outputs` says how many were left out.

So whoever holds the store can check each link by hashing, and whoever does not still sees what was made from what.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmcore.artifacts.keys import file_digest

FORMAT = "llmcore-lineage/1"
OUTPUTS_SHOWN = 200
PUBLISHED = "published"


def bill_of_materials(
    folder: Path,
    manifests: Sequence[Mapping[str, Any]],
    inputs: Mapping[str, str],
    sources: Sequence[Mapping[str, Any]],
    name: str,
    licence: str,
) -> dict[str, Any]:
    """lineage.json for a folder that is complete but for it. inputs: role -> step that the folder was made from."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lineage.json")
    nodes, edges = graph(manifests, inputs)
    return {
        "format": FORMAT,
        "name": name,
        "licence": licence,
        "files": {
            str(path.relative_to(folder)): {"sha256": file_digest(path), "bytes": path.stat().st_size} for path in files
        },
        "nodes": nodes,
        "edges": edges,
        "sources": list(sources),
    }


def graph(
    manifests: Sequence[Mapping[str, Any]], inputs: Mapping[str, str]
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Nodes and edges of the chain, sources first; the published folder is the last node."""
    nodes = [_node(manifest) for manifest in manifests]
    edges = [
        {"from": _id(item), "to": _id(manifest), "role": role}
        for manifest in manifests
        for role, items in sorted(manifest["inputs"].items())
        for item in items
    ]
    by_step = {manifest["step"]: manifest for manifest in manifests}
    edges += [
        {"from": _id(by_step[step]), "to": PUBLISHED, "role": role}
        for role, step in sorted(inputs.items())
        if step in by_step
    ]
    return nodes, edges


def input_steps(manifests: Sequence[Mapping[str, Any]], roles: Iterable[str]) -> dict[str, str]:
    """Role -> step of the last artifact of that role."""
    last = {manifest["role"]: manifest["step"] for manifest in manifests}
    return {role: last[role] for role in roles if role in last}


def unlisted(folder: Path, bill: Mapping[str, Any]) -> Iterable[str]:
    """Files of a folder that lineage.json does not vouch for: absent from it, or with other bytes."""
    listed = bill["files"]
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {"lineage.json"}
    yield from sorted(present ^ set(listed))
    yield from sorted(name for name in present & set(listed) if file_digest(folder / name) != listed[name]["sha256"])


def _id(item: Mapping[str, Any]) -> str:
    return f"{item['stage']}:{item['key'][:16]}"


def _node(manifest: Mapping[str, Any]) -> dict[str, Any]:
    outputs = sorted(manifest["outputs"].items())
    return {
        "id": _id(manifest),
        **{field: manifest[field] for field in ("step", "stage", "version", "key", "digest", "params", "metrics")},
        "outputs": {
            name: {"sha256": output["blob"], "bytes": output["bytes"], "rows": output["rows"]}
            for name, output in outputs[:OUTPUTS_SHOWN]
        },
        "more_outputs": max(0, len(outputs) - OUTPUTS_SHOWN),
    }
