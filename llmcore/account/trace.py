"""One document through everything: every decision on it, every dataset and model that holds it, what was read.

The last word on each model is what its training predicted of the document, and how often: to be in the train split is
not to be read, where the steps end before the plan does.

A document keeps its id and, up to the tokens, its shard's name; so it is looked for once, among what was ingested, and
of each later artifact only the files of that name are opened, with the filter pushed down into the Parquet reader.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import polars as pl

from llmcore.artifacts.index import named_manifests
from llmcore.artifacts.lineage import manifests_behind
from llmcore.artifacts.manifest import Manifest, manifests
from llmcore.artifacts.recipe import StoreFiles
from llmcore.artifacts.shards import generation_name, generation_of, shard_order
from llmcore.artifacts.store import Store
from llmcore.training.exposure import Reading

MOST_DOCUMENTS = 50
PLACEHOLDER = re.compile(r"<([A-Z][A-Z0-9_]+)>")
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

    @property
    def place(self) -> tuple[str, str, str]:
        return place_of(self.manifest)

    def find(self, name: str, wanted: pl.Expr, columns: Sequence[str]) -> pl.DataFrame:
        """The rows of one file that fit, and those of the columns that it has."""
        table = pl.scan_parquet(self.files.path(name))
        known = table.collect_schema()
        return table.filter(wanted).select([column for column in columns if column in known]).collect()


def place_of(manifest: Manifest) -> tuple[str, str, str]:
    """What an artifact is known by in a store."""
    return manifest.stage, manifest.key, manifest.seal


def trace(store: Store, url: str = "", doc: str = "", text: str = "") -> Iterator[Decision]:
    """Follow the documents with this address, this id, or these words in their text.

    url: an address, a file's name within its source, or where the file lies (a path, or s3://…).
    Looks behind every ref of the store (behind every artifact where there is no ref yet), in the order of the chain;
    then says which refs hold the document, and at last what each model's training read of it.
    """
    tops, names = _tops(store)
    nodes = [Node(manifest, StoreFiles(store, manifest.outputs)) for manifest in manifests_behind(store, tops)]
    if url:
        for node in nodes:
            yield from _fetches(node, url) if node.role == "fetch" else ()
    for document, shards in _documents(nodes, url, doc, text).items():
        found = {node.place: list(_decisions(node, document, sorted(shards, key=shard_order), nodes)) for node in nodes}
        yield from (decision for decisions in found.values() for decision in decisions)
        for name, top in names:
            split = _split_of(store, top, document)
            if split:
                held_out = "" if split == "train" else f", held out ({split})"
                detail = f"ref {name} → {top.stage}/{top.key[:12]}{held_out}"
                yield Decision(document, name, "named", detail)
        for node in nodes:
            if node.role == "model":
                behind = [place_of(manifest) for manifest in manifests_behind(store, [node.manifest])]
                yield _read(node, document, nodes, [decision for place in behind for decision in found.get(place, ())])


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
    searched = [node for node in nodes if node.role == "ingest" or (text and node.role == "extract")]
    for names in _names_meant(searched, nodes, url) if url else [{}]:
        for node in searched:
            wanted, in_dropped = _wanted(names.get(node.place, ()), doc, text)
            for folder, expression in (("kept", wanted), ("dropped", in_dropped)):
                if expression is None:
                    continue
                for name in node.files.names(f"{folder}/"):
                    if len(found) >= MOST_DOCUMENTS:
                        return found
                    for id in node.find(name, expression, ("id",))["id"]:
                        found.setdefault(id, set()).add(PurePosixPath(name).name)
        if found:
            break
    return dict(list(found.items())[:MOST_DOCUMENTS])


def _wanted(urls: Sequence[str], doc: str, text: str) -> tuple[pl.Expr, pl.Expr | None]:
    """What to look for among kept and among dropped documents."""
    if doc:
        return pl.col("id") == doc, pl.col("id") == doc
    if text:
        return pl.col("text").str.contains(text, literal=True), None
    said = [pl.col("detail").str.contains(json.dumps(url), literal=True) for url in urls]
    return pl.col("url").is_in(list(urls)), pl.any_horizontal(pl.lit(False), *said)


def _names_meant(
    searched: Sequence[Node], nodes: Sequence[Node], url: str
) -> Iterator[Mapping[tuple[str, str, str], Sequence[str]]]:
    """The addresses that documents of each ingested source may have if they are what is asked for; the surest first.

    An address or a name within a source is taken as it is; a path below a folder that a source was collected from means
    the file of that source and of no other. Of a source whose folder is not known (an old record), the longest end of
    the path that is a name in it counts.
    """
    place = url if "://" in url else str(Path(url).expanduser().resolve())
    yield {
        node.place: [url, *(place.removeprefix(folder) for folder in _folders(node, nodes) if place.startswith(folder))]
        for node in searched
    }
    unknown = [node for node in searched if not any(_folders(node, nodes))]
    parts = PurePosixPath(place).parts[1:] if unknown and "://" not in url else ()
    for first in range(len(parts)):
        yield {node.place: ["/".join(parts[first:])] for node in unknown}


def _folders(node: Node, nodes: Sequence[Node]) -> Iterator[str]:
    """Where the files of an ingested source lay when they were collected, each folder with its last slash."""
    behind = {edge["key"] for edges in node.manifest.inputs.values() for edge in edges}
    for other in nodes:
        if other.manifest.key in behind:
            yield from other.manifest.run.get("folders", ())


def _decisions(node: Node, document: str, shards: Sequence[str], nodes: Sequence[Node]) -> Iterator[Decision]:
    if node.role == "versions":
        yield from _versions(node, document)
    elif node.role == "plan":
        for split, pieces in _planned(node, document):
            numbers = pieces["window"].to_list()
            yield Decision(document, node.step, split, f"{len(numbers)} pieces in windows {_ranges(numbers)}")
    elif node.role != "model":
        yield from _of_shards(node, document, shards, nodes)


def _of_shards(node: Node, document: str, shards: Sequence[str], nodes: Sequence[Node]) -> Iterator[Decision]:
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
                if folder == "kept" and node.role == "pii":
                    detail = f"{detail}, {_masked(node, document, name, nodes)}"
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


def _masked(node: Node, document: str, name: str, nodes: Sequence[Node]) -> str:
    """What was masked in a document, by kind: its text beside that which came in."""
    mine = pl.col("id") == document
    came = {edge["key"] for edge in node.manifest.inputs.get("documents", ())}
    after = node.find(name, mine, ("text",))["text"]
    before = [
        text
        for other in nodes
        if other.manifest.key in came and name in other.manifest.outputs
        for text in other.find(name, mine, ("text",))["text"]
    ]
    if not before:
        return "what was masked cannot be told: the text that came in is not in the store"
    kinds = Counter(PLACEHOLDER.findall(after[0])) - Counter(PLACEHOLDER.findall(before[0]))
    if not kinds:
        return "nothing masked" if before[0] == after[0] else "its text was changed"
    return "masked: " + ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))


def _planned(node: Node, document: str) -> Iterator[tuple[str, pl.DataFrame]]:
    """(split, pieces: window, length) of a document; it is in one split at most."""
    for name in node.files.names("plan/"):
        pieces = node.find(name, pl.col("id") == document, ("window", "length"))
        if pieces.height:
            yield PurePosixPath(name).stem, pieces
            return


def _read(node: Node, document: str, nodes: Sequence[Node], decisions: Sequence[Decision]) -> Decision:
    """What a training predicted of the document; decisions: those of what lies behind the model."""
    behind = {edge["key"] for edge in node.manifest.inputs["plan"]}
    plan = next(other for other in nodes if other.manifest.key in behind)
    split, pieces = next(_planned(plan, document), ("", pl.DataFrame(schema={"window": pl.Int64, "length": pl.Int64})))
    if split == "train":
        reading = Reading.planned(plan.files.path("plan/train.parquet"), node.manifest.identity["params"])
        times = reading.times()[pieces["window"].to_numpy()]
        if times.any():
            steps = _ranges(reading.steps_of(pieces["window"].to_list()))
            lengths = pieces["length"].to_numpy()
            share = lengths[times > 0].sum() / lengths.sum()
            part = "all" if share == 1 else f"{100 * share:.0f} %"
            often = _often(int(times[times > 0].min()), int(times.max()))
            detail = f"at steps {steps}: {part} of its {lengths.sum()} tokens, {often}"
            return Decision(document, node.step, "trained on", detail)
        passes = reading.steps * reading.batch / reading.windows
        why = f"it is in the train split, but {passes:.2g} passes over the windows did not reach its own"
    elif split:
        why = f"it is held out ({split})"
    else:
        lost = [decision for decision in decisions if decision.outcome.startswith("dropped")]
        why = f"{lost[-1].step} {lost[-1].outcome}" if lost else "it is not in the plan"
    return Decision(document, node.step, "not trained on", f"no step saw it: {why}")


def _often(least: int, most: int) -> str:
    if least != most:
        return f"{least} to {most} times"
    return {1: "once", 2: "twice"}.get(most, f"{most} times")


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
