"""One document through everything: every decision on it, every dataset and model that holds it, and when."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import polars as pl

from llmcore.artifacts.index import named_manifests
from llmcore.artifacts.lineage import manifests_behind
from llmcore.artifacts.manifest import Manifest
from llmcore.artifacts.recipe import StoreFiles
from llmcore.artifacts.store import Store
from llmcore.training.loader import steps_of_windows

MOST_DOCUMENTS = 50


@dataclass(frozen=True)
class Decision:
    """What one step did with one document (its id, or its URL where it never became one)."""

    document: str
    step: str
    outcome: str
    detail: str

    def plain(self) -> dict[str, str]:
        return asdict(self)


def trace(store: Store, url: str = "", doc: str = "", text: str = "") -> Iterator[Decision]:
    """Follow the documents with this URL, this id, or these words in their text.

    Looks behind every ref of the store (behind every artifact where there is no ref yet), in the order of the chain.
    """
    tops, names = _tops(store)
    nodes = manifests_behind(store, tops)
    files = {node.key: StoreFiles(store, node.outputs) for node in nodes}
    ids = [doc] if doc else []
    for node in nodes:
        if node.stage == "crawl" and url:
            yield from _fetches(node, files[node.key], url)
        elif node.stage == "ingest" and not doc:
            ids += _ids(files[node.key], url, text)
        elif node.stage == "extract" and text:
            # HTML spells many words otherwise than the text it holds
            ids += _ids(files[node.key], url, text)
    for document in list(dict.fromkeys(ids))[:MOST_DOCUMENTS]:
        for node in nodes:
            yield from _decisions(node, files[node.key], document, nodes, files)
        for name, top in names:
            if _reaches(store, top, document):
                yield Decision(document, name, "named", f"ref {name} → {top.stage}/{top.key[:12]}")


def _tops(store: Store) -> tuple[list[Manifest], list[tuple[str, Manifest]]]:
    names = list(named_manifests(store))
    if names:
        return [manifest for _, manifest in names], names
    from llmcore.artifacts.manifest import manifests

    return list(manifests(store)), []


def _fetches(node: Manifest, files: StoreFiles, url: str) -> Iterator[Decision]:
    for name, table in files.tables("fetches/"):
        for row in table.filter(pl.col("url") == url).iter_rows(named=True):
            facts = {field: row[field] for field in ("status", "reason", "fetched_at") if row[field] is not None}
            yield Decision(url, node.step, row["outcome"], f"{name.split('/')[-1].split('.')[0]}: {_json(facts)}")


def _ids(files: StoreFiles, url: str, text: str) -> list[str]:
    wanted = pl.col("url") == url if url else pl.col("text").str.contains(text, literal=True)
    found: list[str] = []
    for _, table in files.tables("kept/"):
        found += table.filter(wanted)["id"].to_list()
    if url:
        for _, table in files.tables("dropped/"):
            found += table.filter(pl.col("detail").str.contains(json.dumps(url)[1:-1], literal=True))["id"].to_list()
    return found


def _decisions(
    node: Manifest, files: StoreFiles, document: str, nodes: Sequence[Manifest], all_files: dict[str, StoreFiles]
) -> Iterator[Decision]:
    mine = pl.col("id") == document
    for name in files.names():
        folder, _, shard = name.partition("/")
        if folder not in ("kept", "dropped", "train", "validation", "test") or not name.endswith(".parquet"):
            continue
        for row in pl.scan_parquet(files.path(name)).filter(mine).collect().iter_rows(named=True):
            if folder == "dropped":
                yield Decision(document, node.step, f"dropped: {row['reason']}", _with_url(row["detail"] or "", files))
            elif folder == "kept":
                facts = {field: row[field] for field in ("url", "lang", "split") if row.get(field) is not None}
                yield Decision(document, node.step, "kept", f"{shard} {_json(facts)}")
            else:
                yield Decision(document, node.step, folder, f"{shard}, {row['n_tokens']} tokens")
    if node.stage == "pack":
        for name in files.names("plan/"):
            pieces = pl.scan_parquet(files.path(name)).filter(mine).collect()
            if pieces.height:
                windows = pieces["window"].to_list()
                yield Decision(
                    document,
                    node.step,
                    name.split("/")[-1].removesuffix(".parquet"),
                    f"{len(windows)} pieces in windows {_ranges(windows)}",
                )
    if node.stage == "train":
        plan = next(n for n in nodes if any(n.key == item["key"] for item in node.inputs["plan"]))
        pieces = pl.scan_parquet(all_files[plan.key].path("plan/train.parquet")).filter(mine).collect()
        if pieces.height:
            steps = steps_of_windows(node.identity["params"], all_files[plan.key], pieces["window"].to_list())
            yield Decision(document, node.step, "trained on", f"at steps {_ranges(steps)}")


def _with_url(detail: str, files: StoreFiles) -> str:
    """The URL of the document that this one duplicates beside its id, where it has one."""
    facts = json.loads(detail) if detail.startswith("{") else {}
    if "duplicate_of" not in facts:
        return detail
    same = pl.col("id") == facts["duplicate_of"]
    for name in files.names("kept/"):
        found = pl.scan_parquet(files.path(name)).filter(same).select("url").collect()
        if found.height and found.item() is not None:
            return _json({**facts, "duplicate_of_url": found.item()})
    return detail


def _reaches(store: Store, top: Manifest, document: str) -> bool:
    """Whether the tokens behind a named artifact hold the document."""
    mine = pl.col("id") == document
    for node in manifests_behind(store, [top]):
        if node.stage == "tokenise":
            files = StoreFiles(store, node.outputs)
            return any(pl.scan_parquet(files.path(n)).filter(mine).collect().height for n in files.names())
    return False


def _ranges(numbers: Sequence[int]) -> str:
    """1, 2, 3, 7 → "1-3, 7"."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def _json(facts: dict[str, object]) -> str:
    return json.dumps(facts, ensure_ascii=False, default=str)
