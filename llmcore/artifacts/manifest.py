"""What was made, from what, and how: references, outputs, manifests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from llmcore.artifacts.keys import key_of
from llmcore.artifacts.store import Store
from llmcore.errors import LlmcoreError, UsageError


@dataclass(frozen=True)
class ArtifactRef:
    """What passes between tasks: a small reference to an artifact, never data."""

    stage: str
    key: str
    digest: str
    store: str

    def plain(self) -> dict[str, str]:
        return {"stage": self.stage, "key": self.key, "digest": self.digest}


@dataclass(frozen=True)
class Output:
    """One file of an artifact."""

    blob: str
    bytes: int
    rows: int | None = None


def outputs_digest(outputs: Mapping[str, Output]) -> str:
    """What an artifact contains, as one hash: file names and the digests of their bytes."""
    return key_of({name: output.blob for name, output in outputs.items()})


@dataclass(frozen=True)
class Manifest:
    """An artifact's record.

    identity: stage, version, parameters and, by role, the digests of the inputs; its hash is the key.
    inputs:   role -> the artifacts behind it ({step, stage, key, digest}); for lineage.
    """

    step: str
    key: str
    digest: str
    identity: Mapping[str, Any]
    inputs: Mapping[str, tuple[Mapping[str, str], ...]]
    outputs: Mapping[str, Output]
    metrics: Mapping[str, Any]
    role: str = ""
    code: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stage(self) -> str:
        return str(self.identity["stage"])

    def ref(self, store: Store) -> ArtifactRef:
        return ArtifactRef(self.stage, self.key, self.digest, store.uri)

    def plain(self) -> dict[str, Any]:
        return asdict(self)

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


def manifest_name(stage: str, key: str) -> str:
    return f"artifacts/{stage}/{key}.json"


def read_manifest(store: Store, stage: str, key: str) -> Manifest | None:
    """The manifest of a key; None if that artifact was never committed. LlmcoreError if the record is damaged."""
    name = manifest_name(stage, key)
    record = store.record(name)
    if record is None:
        return None
    try:
        outputs = {file: Output(**output) for file, output in record.pop("outputs").items()}
        inputs = {role: tuple(items) for role, items in record.pop("inputs").items()}
        manifest = Manifest(outputs=outputs, inputs=inputs, **record)
        sound = key_of(manifest.identity) == manifest.key == key and outputs_digest(outputs) == manifest.digest
    except (KeyError, TypeError, AttributeError) as error:
        raise LlmcoreError(f"damaged record {name} in {store.uri}: {error!r}; delete it to have it remade") from error
    if not sound:
        raise LlmcoreError(f"damaged record {name} in {store.uri}: its hash differs; delete it to have it remade")
    return manifest


def manifest_of(store: Store, ref: ArtifactRef) -> Manifest:
    manifest = read_manifest(store, ref.stage, ref.key)
    if manifest is None:
        raise LlmcoreError(f"artifact {ref.stage}/{ref.key[:12]} is not in {store.uri}; run the pipeline again")
    return manifest


def manifests(store: Store, stage: str = "") -> Iterator[Manifest]:
    """Every committed artifact, of one stage or of all."""
    for entry in store.backend.entries(f"artifacts/{stage}/" if stage else "artifacts/"):
        _, found, file = entry.name.split("/", 2)
        manifest = read_manifest(store, found, file.removesuffix(".json"))
        if manifest is not None:
            yield manifest


def resolve_ref(store: Store, text: str) -> Manifest:
    """The artifact that a ref name, or a unique prefix (6 or more hex digits) of a key or digest, stands for."""
    ref = store.ref(text) if "/" in text or not _is_hex(text) else None
    if ref is None and _is_hex(text):
        ref = store.ref(text)
    if ref is not None:
        manifest = read_manifest(store, ref["stage"], ref["key"])
        if manifest is None:
            raise LlmcoreError(f"ref {text!r} names an artifact that is not in {store.uri}; run the pipeline again")
        return manifest
    if _is_hex(text) and len(text) >= 6:
        found = {m.key: m for m in manifests(store) if m.key.startswith(text) or m.digest.startswith(text)}
        if len(found) == 1:
            return next(iter(found.values()))
        if found:
            raise UsageError(f"{text!r} fits {len(found)} artifacts in {store.uri}; give more digits")
    raise UsageError(f"no ref, key or digest {text!r} in {store.uri}; `llmcore ls` lists what there is")


def _is_hex(text: str) -> bool:
    return bool(text) and all(letter in "0123456789abcdef" for letter in text)
