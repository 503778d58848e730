"""What was made, from what, and how: references, outputs, manifests.

A manifest's `seal` is the hash of all it says but for code, environment and run; its inputs are named by their seals.
So a seal vouches for the whole graph behind it: parameters, edges, bytes and metrics of every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from llmcore.artifacts.backends import Entry
from llmcore.artifacts.keys import key_of
from llmcore.artifacts.shards import generation_of
from llmcore.artifacts.store import Store
from llmcore.errors import LlmcoreError

INLINE_FILES = 256  # an artifact of more lists them in a blob, so that its manifest stays small
SEAL_DIGITS = 16  # of an edition's name
# 0.1 wrote no role; what it made still counts as what it is, so that its datasets go on and its documents can be traced
OLD_ROLES = {
    "crawl": "fetch",
    "collect": "fetch",
    "ingest": "ingest",
    "extract": "extract",
    "benchmarks": "benchmarks",
    "split": "split",
    "tokenizer": "tokenizer",
    "tokenise": "tokens",
    "pack": "plan",
    "train": "model",
    "evaluate": "evaluation",
    "quantise": "quantised",
    "publish": "published",
}


@dataclass(frozen=True)
class ArtifactRef:
    """What passes between tasks: a small reference to an artifact, never data.

    seal: which edition of it (the same bytes may come of several recipes); "" for the first there was.
    """

    stage: str
    key: str
    digest: str
    store: str
    seal: str = ""

    def plain(self) -> dict[str, str]:
        return {"stage": self.stage, "key": self.key, "digest": self.digest, "seal": self.seal}


@dataclass(frozen=True)
class Output:
    """One file of an artifact."""

    blob: str
    bytes: int
    rows: int | None = None


def outputs_digest(outputs: Mapping[str, Output]) -> str:
    """What an artifact contains, as one hash: file names and the digests of their bytes."""
    return key_of({name: output.blob for name, output in outputs.items()})


NOTHING = outputs_digest({})


@dataclass(frozen=True)
class Folder:
    """The files below a top-level folder of an artifact: how many, how large, and their digest, also by generation."""

    files: int
    bytes: int
    rows: int
    digest: str
    generations: Mapping[str, str]


def folders_of(outputs: Mapping[str, Output]) -> dict[str, Folder]:
    """Top-level folder -> what lies in it; "" for files beside the folders."""
    inside: dict[str, dict[str, Output]] = {}
    for name, output in outputs.items():
        inside.setdefault(name.partition("/")[0] if "/" in name else "", {})[name] = output
    found = {}
    for folder, files in inside.items():
        generations: dict[str, dict[str, Output]] = {}
        for name, output in files.items():
            number = generation_of(name)
            if number is not None:
                generations.setdefault(str(number), {})[name] = output
        found[folder] = Folder(
            files=len(files),
            bytes=sum(output.bytes for output in files.values()),
            rows=sum(output.rows or 0 for output in files.values()),
            digest=outputs_digest(files),
            generations={number: outputs_digest(part) for number, part in generations.items()},
        )
    return found


class Listing(Mapping[str, Output]):
    """The files of a large artifact, read from the blob that lists them when somebody asks."""

    def __init__(self, store: Store, blob: str) -> None:
        self._store, self._blob = store, blob
        self._found: dict[str, Output] | None = None

    def _outputs(self) -> dict[str, Output]:
        if self._found is None:
            table = pl.read_parquet(self._store.fetch_blob(self._blob, ".parquet", "the list of an artifact's files"))
            columns = (table[name].to_list() for name in ("name", "blob", "bytes", "rows"))
            self._found = {name: Output(blob, size, rows) for name, blob, size, rows in zip(*columns, strict=True)}
        return self._found

    def __getitem__(self, name: str) -> Output:
        return self._outputs()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._outputs())

    def __len__(self) -> int:
        return len(self._outputs())


def write_listing(outputs: Mapping[str, Output], path: Path) -> None:
    """The file that a `Listing` reads, in the order given."""
    pl.DataFrame(
        {
            "name": list(outputs),
            "blob": [output.blob for output in outputs.values()],
            "bytes": [output.bytes for output in outputs.values()],
            "rows": [output.rows for output in outputs.values()],
        },
        schema={"name": pl.String(), "blob": pl.String(), "bytes": pl.Int64(), "rows": pl.Int64()},
    ).write_parquet(path, compression="zstd")


@dataclass(frozen=True)
class Manifest:
    """An artifact's record.

    identity: stage, version, parameters and, by role, the digests of the inputs; its hash is the key.
    inputs:   role -> the artifacts behind it ({step, stage, key, digest, seal}); for lineage.
    folders:  what the outputs are in total, folder by folder.
    listing:  the blob that lists the outputs, where they are too many to stand in the record.
    """

    step: str
    key: str
    digest: str
    identity: Mapping[str, Any]
    inputs: Mapping[str, tuple[Mapping[str, str], ...]]
    outputs: Mapping[str, Output]
    folders: Mapping[str, Folder]
    metrics: Mapping[str, Any]
    role: str = ""
    listing: str | None = None
    seal: str = ""
    code: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stage(self) -> str:
        return str(self.identity["stage"])

    @property
    def bytes(self) -> int:
        return sum(folder.bytes for folder in self.folders.values())

    @property
    def files(self) -> int:
        return sum(folder.files for folder in self.folders.values())

    def ref(self, store: Store) -> ArtifactRef:
        return ArtifactRef(self.stage, self.key, self.digest, store.uri, self.seal)

    def edge(self) -> dict[str, str]:
        """How a manifest made from this one names it."""
        return {
            "step": self.step,
            "stage": self.stage,
            "key": self.key,
            "digest": self.digest,
            "seal": self.seal,
        }

    def sealed(self) -> str:
        """The hash of what the record says."""
        return key_of(
            {
                "step": self.step,
                "role": self.role,
                "identity": self.identity,
                "inputs": self.inputs,
                "digest": self.digest,
                "folders": {name: asdict(folder) for name, folder in self.folders.items()},
                "listing": self.listing,
                "metrics": self.metrics,
            }
        )

    def plain(self) -> dict[str, Any]:
        """The record as it is stored."""
        return {
            "step": self.step,
            "role": self.role,
            "key": self.key,
            "digest": self.digest,
            "seal": self.seal,
            "identity": self.identity,
            "inputs": {role: [dict(item) for item in items] for role, items in self.inputs.items()},
            "outputs": None if self.listing else {name: asdict(output) for name, output in self.outputs.items()},
            "folders": {name: asdict(folder) for name, folder in self.folders.items()},
            "listing": self.listing,
            "metrics": self.metrics,
            "code": self.code,
            "environment": self.environment,
            "run": self.run,
        }

    def public(self) -> dict[str, Any]:
        """The part that two runs of one recipe share: what lineage and reports may show."""
        return {
            "step": self.step,
            "stage": self.stage,
            "role": self.role,
            "key": self.key,
            "digest": self.digest,
            "version": self.identity["version"],
            "params": self.identity["params"],
            "inputs": {role: [dict(item) for item in items] for role, items in self.inputs.items()},
            "outputs": {name: asdict(output) for name, output in sorted(self.outputs.items())},
            "metrics": dict(self.metrics),
        }


def manifest_name(stage: str, key: str, edition: str = "") -> str:
    """Where the first manifest of a key lies, or a further edition of it, named by the start of its seal."""
    return f"editions/{stage}/{key}/{edition[:SEAL_DIGITS]}.json" if edition else f"artifacts/{stage}/{key}.json"


def parse_name(name: str) -> tuple[str, str, str]:
    """Stage, key and edition ("" for the first) of a manifest's name."""
    _, stage, file = name.removesuffix(".json").split("/", 2)
    key, _, edition = file.partition("/")
    return stage, key, edition


def read_manifest(store: Store, stage: str, key: str, seal: str = "") -> Manifest | None:
    """The manifest of a key, and of the edition with this seal if one is named; None if there is none.

    LlmcoreError if the record is damaged.
    """
    first = read_record(store, manifest_name(stage, key))
    if first is not None and seal in ("", first.seal):
        return first
    return read_record(store, manifest_name(stage, key, seal)) if seal else None


def read_record(store: Store, name: str) -> Manifest | None:
    """The manifest stored under a name, checked against its own hashes; None if there is none."""
    record = store.record(name)
    if record is None:
        return None
    legacy = "seal" not in record  # made by 0.1
    try:
        if legacy:
            role = OLD_ROLES.get(record["identity"]["stage"], "")
            record |= {"role": role, "seal": "", "listing": None, "folders": _plain_folders(record["outputs"])}
        listing = record.get("listing")
        outputs: Mapping[str, Output] = (
            Listing(store, listing)
            if listing
            else {file: Output(**output) for file, output in record["outputs"].items()}
        )
        manifest = Manifest(
            outputs=outputs,
            inputs={role: tuple(items) for role, items in record["inputs"].items()},
            folders={folder: Folder(**facts) for folder, facts in record["folders"].items()},
            **{field: value for field, value in record.items() if field not in ("outputs", "inputs", "folders")},
        )
        stage, key, edition = parse_name(name)
        sound = (
            key_of(manifest.identity) == manifest.key == key
            and manifest.stage == stage
            and (legacy or manifest.sealed() == manifest.seal)
            and manifest.seal.startswith(edition)
            and (listing or outputs_digest(outputs) == manifest.digest)
            and (listing or all(type(output.bytes) is int for output in outputs.values()))
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise LlmcoreError(f"damaged record {name} in {store.uri}: {error!r}; delete it to have it remade") from error
    if not sound:
        raise LlmcoreError(f"damaged record {name} in {store.uri}: its hash differs; delete it to have it remade")
    return manifest


def _plain_folders(outputs: Mapping[str, Any]) -> dict[str, Any]:
    found = folders_of({name: Output(**output) for name, output in outputs.items()})
    return {name: asdict(folder) for name, folder in found.items()}


def manifest_of(store: Store, ref: ArtifactRef) -> Manifest:
    """The manifest that a reference stands for. LlmcoreError if it is gone, or was made anew and differs since."""
    manifest = read_manifest(store, ref.stage, ref.key, ref.seal)
    if manifest is None:
        raise LlmcoreError(f"artifact {ref.stage}/{ref.key[:12]} is not in {store.uri}; run the pipeline again")
    return manifest


def manifest_entries(store: Store, stage: str = "") -> Iterator[Entry]:
    """Where every committed artifact and each of its further editions is recorded, of one stage or of all."""
    for room in ("artifacts", "editions"):
        yield from store.backend.entries(f"{room}/{stage}/" if stage else f"{room}/")


def manifests(store: Store, stage: str = "") -> Iterator[Manifest]:
    """Every committed artifact, of one stage or of all, and each of its editions."""
    names = [entry.name for entry in manifest_entries(store, stage)]
    told: set[tuple[str, str, str]] = set()
    for manifest in store.each(names, lambda name: read_record(store, name)):
        # a forced run writes its manifest as an edition too
        if manifest is not None and (place := (manifest.stage, manifest.key, manifest.seal)) not in told:
            told.add(place)
            yield manifest
