"""What says that a checkpoint is whole: `step-NNNNNNNN.json` beside the folder of its files. Read without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcore.artifacts.keys import difference, key_of

FOLDER = "checkpoints"  # below a training's scratch
FILES = ("model.safetensors", "optimizer.safetensors", "history.parquet")

# What may change between a training and the one that goes on from its checkpoint: how a step's sums are shared out and
# rounded, and what is only looked at. Weights and moments are fp32 under every precision.
MAY_DIFFER = frozenset(
    f"train.{name}"
    for name in (
        "micro_batch",
        "processes",
        "threads",
        "device",
        "precision",
        "compile",
        "validation_every",
        "validation_windows",
    )
)


@dataclass(frozen=True)
class Marker:
    """A checkpoint after `step` steps.

    recipe: what is trained, as plain fields. files: name -> SHA-256. sizes: name -> bytes.
    """

    step: int
    recipe: Mapping[str, Any]
    files: Mapping[str, str]
    sizes: Mapping[str, int]

    @property
    def name(self) -> str:
        return f"step-{self.step:08d}"

    @property
    def digest(self) -> str:
        """SHA-256 over everything the marker says, and so over the checkpoint's bytes."""
        return key_of(self._said())

    def plain(self) -> dict[str, Any]:
        return {**self._said(), "digest": self.digest}

    def _said(self) -> dict[str, Any]:
        return {"step": self.step, "recipe": self.recipe, "files": self.files, "sizes": self.sizes}

    @classmethod
    def read(cls, data: bytes) -> Marker:
        """ValueError where it is no marker, or not what was written."""
        try:
            content = json.loads(data)
            digest = content.pop("digest")
            marker = cls(**content)
            sound = marker.digest == digest and set(marker.files) == set(marker.sizes) == set(FILES)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a checkpoint's marker: {error!r}") from error
        if not sound:
            raise ValueError("its hash differs from what it says")
        return marker


def markers(folder: Path) -> list[Path]:
    """The markers in a folder, the newest first."""
    return sorted(folder.glob("step-*.json"), reverse=True)


def mismatch(theirs: Mapping[str, Any], ours: Mapping[str, Any], may_differ: frozenset[str] = frozenset()) -> str:
    """Where two recipes differ, as "train.seed 1, here 2"; "" where they do not, but for what may."""
    found = [
        f"{field} {theirs_is}, here {ours_is}"
        for field, theirs_is, ours_is in difference(theirs, ours)
        if field not in may_differ
    ]
    return "; ".join(found[:3]) + (f" (and {len(found) - 3} more)" if len(found) > 3 else "")
