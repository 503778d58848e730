"""What a run says of its stages: a line each, and a warning where one takes much of a source.

stage              read      kept   dropped   seconds
ingest notes         40        40         0       0.3
clean                40        39         1    cached
train              595 steps, loss 4.873         71.2
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from llmcore.account.funnel import FunnelRow, counts_of, worst_rule
from llmcore.artifacts.manifest import ArtifactRef, Manifest, manifest_of
from llmcore.artifacts.recipe import Step
from llmcore.artifacts.shards import shard_order
from llmcore.artifacts.store import Store
from llmcore.planning.chain import Chain

MUCH = 0.2  # of a source, taken by one stage: worth a look, for few corpora are that bad
DIGITS = 12  # of a key: enough to name it
NUMBER, SECONDS = 9, 9  # width of columns


class Lines:
    """The lines of one run over a chain."""

    def __init__(self, store: Store, chain: Chain) -> None:
        self.store = store
        self._names = max(len(name) for name in chain.steps)

    def head(self) -> str:
        numbers = " ".join(f"{word:>{NUMBER}}" for word in ("read", "kept", "dropped"))
        return f"{'stage':<{self._names}} {numbers} {'seconds':>{SECONDS}}"

    def of(self, step: Step, done: Mapping[str, ArtifactRef], seconds: float | None) -> str:
        """The line of a step that is done. seconds: None if its artifact was there already."""
        made = manifest_of(self.store, done[step.name])
        rows = self._rows(step, made, done)
        if rows:
            sums = (sum(row.read for row in rows), sum(row.kept for row in rows), sum(row.dropped for row in rows))
            middle = " ".join(f"{number:>{NUMBER},}" for number in sums)
        else:
            middle = f"{_in_short(made):>{3 * NUMBER + 2}}"
        took = "cached" if seconds is None else f"{seconds:,.1f}"
        return f"{step.name:<{self._names}} {middle} {took:>{SECONDS}}"

    def warnings(self, step: Step, done: Mapping[str, ArtifactRef], seconds: float | None) -> Iterator[str]:
        """One for each source of which a step that ran just now dropped much; after a refresh, of what that brought."""
        if seconds is None:
            return
        made = manifest_of(self.store, done[step.name])
        by_source: dict[str, list[FunnelRow]] = {}
        counted = self._rows(step, made, done)
        newest = max((row.generation for row in counted), key=shard_order, default="")
        for row in counted:
            if row.generation == newest:
                by_source.setdefault(row.source, []).append(row)
        for source, rows in by_source.items():
            read, lost = sum(row.read for row in rows), sum(row.dropped for row in rows)
            if lost > MUCH * read:
                rule = worst_rule(self.store, made, source, newest)
                look = f"llmcore dropped {made.key[:DIGITS]} --source {source}"
                yield (
                    f"{step.name} dropped {lost:,} of {read:,} documents of {source} ({100 * lost / read:.0f} %), "
                    f"most by {rule}; to read some: {look}"
                )

    def _rows(self, step: Step, made: Manifest, done: Mapping[str, ArtifactRef]) -> list[FunnelRow]:
        # `versions` writes no document again: what stands is what the step before chose, without what left
        origins = step.inputs["documents"].steps if made.role == "versions" else ()
        return counts_of(self.store, made, [manifest_of(self.store, done[name]) for name in origins])


def _in_short(made: Manifest) -> str:
    """What an artifact is that holds no documents: a few words from its metrics, "" where there are none to tell."""
    found = made.metrics
    rows = {name: folder.rows for name, folder in made.folders.items()}
    if made.role == "fetch":
        return _counted({"page": found.get("pages"), "file": found.get("files")})
    if made.role == "tokenizer":
        return f"vocabulary of {found.get('vocab_size', 0):,}"
    if made.role in ("split", "tokens"):
        return _counted({"document": sum(rows.values())})
    if made.role == "plan":
        return _counted({"token": found.get("train_tokens"), "window": found.get("train_windows")})
    if made.role == "model":
        loss = found.get("loss")
        return _counted({"step": found.get("steps")}) + (f", loss {loss:.3f}" if loss is not None else "")
    if made.role == "evaluation":
        score = next((found[name] for name in found if name.endswith("_bits_per_byte")), None)
        return "" if score is None else f"{score:.3f} bits per byte"
    if made.role in ("quantised", "published"):
        return f"{len({PurePosixPath(name).name for name in made.outputs})} files, {made.bytes / 1e6:,.1f} MB"
    return ""


def _counted(numbers: Mapping[str, object]) -> str:
    """{"file": 3, "page": None} → 3 files"""
    told = [
        f"{number:,} {word}{'s' if number != 1 else ''}" for word, number in numbers.items() if isinstance(number, int)
    ]
    return ", ".join(told)
