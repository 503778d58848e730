"""One document through everything: every decision on it, every dataset and model that holds it, and when.

A document keeps its id and, up to the tokens, its shard's name; so it is looked for once, among what was ingested, and
of each later artifact only the files of that name are opened, with the filter pushed down into the Parquet reader.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath

import polars as pl

from llmcore.artifacts.index import named_manifests
from llmcore.artifacts.lineage import manifests_behind
from llmcore.artifacts.manifest import Manifest, manifests
from llmcore.artifacts.recipe import StoreFiles
from llmcore.artifacts.shards import generation_name, generation_of, shard_order
from llmcore.artifacts.store import Store
from llmcore.training.loader import steps_of_windows

MOST_DOCUMENTS = 50
SPLITS = ("train", "validation", "test")
FACTS = ("url", "lang", "split", "n_tokens")


@dataclass(frozen=True)
class Decision:
    """What one step did with one document (its id, or its URL where it never became one).

    generation: of the shard that it was decided in, or of the listing; "" where the whole dataset is meant.
    """

    document: str
    step: str
    outcome: str
    detail: str
    generation: str = ""

    def plain(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class Node:
    """An artifact and its files."""

    manifest: Manifest
    files: StoreFiles

    @property
    def step(self) -> str:
        return self.manifest.step

    @property
    def role(self) -> str:
        return self.manifest.role

    def find(self, name: str, wanted: pl.Expr, columns: Sequence[str]) -> pl.DataFrame:
        """The rows of one file that fit, and those of the columns that it has."""
        table = pl.scan_parquet(self.files.path(name))
        known = table.collect_schema()
        return table.filter(wanted).select([column for column in columns if column in known]).collect()


def trace(store: Store, url: str = "", doc: str = "", text: str = "") -> Iterator[Decision]:
    """Follow the documents with this URL, this id, or these words in their text.

    Looks behind every ref of the store (behind every artifact where there is no ref yet), in the order of the chain.
    """
    tops, names = _tops(store)
    nodes = [Node(manifest, StoreFiles(store, manifest.outputs)) for manifest in manifests_behind(store, tops)]
    if url:
        for node in nodes:
            yield from _fetches(node, url) if node.role == "fetch" else ()
    for document, shards in _documents(nodes, url, doc, text).items():
        for node in nodes:
            yield from _decisions(node, document, sorted(shards, key=shard_order), nodes)
        for name, top in names:
            split = _split_of(store, top, document)
            if split:
                held_out = "" if split == "train" else f", held out ({split})"
                detail = f"ref {name} → {top.stage}/{top.key[:12]}{held_out}"
                yield Decision(document, name, "named", detail)


def _tops(store: Store) -> tuple[list[Manifest], list[tuple[str, Manifest]]]:
    names = list(named_manifests(store))
    return ([manifest for _, manifest in names], names) if names else (list(manifests(store)), [])


def _fetches(node: Node, url: str) -> Iterator[Decision]:
    fields = ("status", "reason", "fetched_at")
    for name in node.files.names("fetches/"):
        for row in node.find(name, pl.col("url") == url, ("outcome", *fields)).iter_rows(named=True):
            facts = {field: row[field] for field in fields if row[field] is not None}
            generation = _generation(name)
            yield Decision(url, node.step, row["outcome"], f"{generation}: {_json(facts)}", generation)


def _documents(nodes: Sequence[Node], url: str, doc: str, text: str) -> dict[str, set[str]]:
    """id -> names of the shards that it came in; an id comes again where its page went back to what it was.

    Words are also looked for behind extract: HTML spells many otherwise than the text it holds.
    """
    found: dict[str, set[str]] = {}
    if doc:
        wanted = in_dropped = pl.col("id") == doc
    elif url:
        wanted = pl.col("url") == url
        in_dropped = pl.col("detail").str.contains(json.dumps(url)[1:-1], literal=True)
    else:
        wanted, in_dropped = pl.col("text").str.contains(text, literal=True), pl.lit(False)
    for node in nodes:
        if node.role != "ingest" and not (text and node.role == "extract"):
            continue
        for folder, expression in (("kept", wanted), ("dropped", in_dropped)):
            if folder == "dropped" and text:
                continue
            for name in node.files.names(f"{folder}/"):
                if len(found) >= MOST_DOCUMENTS:
                    return found
                for id in node.find(name, expression, ("id",))["id"]:
                    found.setdefault(id, set()).add(PurePosixPath(name).name)
    return dict(list(found.items())[:MOST_DOCUMENTS])


def _decisions(node: Node, document: str, shards: Sequence[str], nodes: Sequence[Node]) -> Iterator[Decision]:
    if node.role == "versions":
        yield from _versions(node, document)
    elif node.role == "plan":
        for split, windows in _planned(node, document):
            yield Decision(document, node.step, split, f"{len(windows)} pieces in windows {_ranges(windows)}")
    elif node.role == "model":
        yield from _trained(node, document, nodes)
    else:
        yield from _of_shards(node, document, shards)


def _of_shards(node: Node, document: str, shards: Sequence[str]) -> Iterator[Decision]:
    mine = pl.col("id") == document
    for shard in shards:
        for folder in ("kept", "dropped", *SPLITS):
            name = f"{folder}/{shard}"
            if name not in node.manifest.outputs:
                continue
            for row in node.find(name, mine, ("reason", "detail", *FACTS)).iter_rows(named=True):
                facts = {field: row[field] for field in ("url", "lang", "split") if row.get(field) is not None}
                outcome, detail = {
                    "kept": ("kept", f"{shard} {_json(facts)}"),
                    "dropped": (f"dropped: {row.get('reason')}", row.get("detail") or ""),
                }.get(folder, (folder, f"{shard}, {row.get('n_tokens')} tokens"))
                detail = _with_url(detail, node) if folder == "dropped" else detail
                yield Decision(document, node.step, outcome, detail, _generation(shard))


def _versions(node: Node, document: str) -> Iterator[Decision]:
    """What the document replaced, and what replaced it."""
    by_me = pl.col("detail").str.contains(document, literal=True)
    for name in node.files.names("dropped/"):
        for row in node.find(name, by_me & (pl.col("id") != document), ("id", "detail")).iter_rows(named=True):
            now = json.loads(row["detail"])["generation"]
            yield Decision(document, node.step, f"replaces {row['id']} ({_generation(name)})", row["detail"], now)
    for name in node.files.names("dropped/"):
        for row in node.find(name, pl.col("id") == document, ("reason", "detail")).iter_rows(named=True):
            facts = json.loads(row["detail"])
            by = f" by {facts['superseded_by']}" if "superseded_by" in facts else ""
            outcome = f"dropped: {row['reason']}{by} ({facts['generation']})"
            yield Decision(document, node.step, outcome, row["detail"], _generation(name))


def _planned(node: Node, document: str) -> Iterator[tuple[str, list[int]]]:
    """(split, windows) of a document; it is in one split at most."""
    for name in node.files.names("plan/"):
        pieces = node.find(name, pl.col("id") == document, ("window",))
        if pieces.height:
            yield PurePosixPath(name).stem, pieces["window"].to_list()
            return


def _trained(node: Node, document: str, nodes: Sequence[Node]) -> Iterator[Decision]:
    behind = {item["key"] for item in node.manifest.inputs["plan"]}
    plan = next(other for other in nodes if other.manifest.key in behind)
    for split, windows in _planned(plan, document):
        if split == "train":
            steps = steps_of_windows(node.manifest.identity["params"], plan.files, windows)
            yield Decision(document, node.step, "trained on", f"at steps {_ranges(steps)}")


def _with_url(detail: str, node: Node) -> str:
    """The URL of the document that this one duplicates beside its id, where it has one."""
    facts: Mapping[str, object] = json.loads(detail) if detail.startswith("{") else {}
    if "duplicate_of" not in facts:
        return detail
    same = pl.col("id") == pl.lit(facts["duplicate_of"])
    for name in node.files.names("kept/"):
        found = node.find(name, same, ("url",))
        if found.height:
            return detail if found.item() is None else _json({**facts, "duplicate_of_url": found.item()})
    return detail


def _split_of(store: Store, top: Manifest, document: str) -> str:
    """The split in which the newest plan behind a named artifact holds the document; "" where it does not."""
    plans = [manifest for manifest in manifests_behind(store, [top]) if manifest.role == "plan"]
    for plan in plans[-1:]:
        for split, _ in _planned(Node(plan, StoreFiles(store, plan.outputs)), document):
            return split
    return ""


def _generation(name: str) -> str:
    number = generation_of(name)
    return "" if number is None else generation_name(number)


def _ranges(numbers: Sequence[int]) -> str:
    """1, 2, 3, 7 → "1-3, 7"."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def _json(facts: Mapping[str, object]) -> str:
    return json.dumps(facts, ensure_ascii=False, default=str)
