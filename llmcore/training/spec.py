"""What a trainer is told: parameters, and where the files lie. Written by the stage, read by the trainer's process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from llmcore.errors import UsageError
from llmcore.training.params import TrainParams

STOPPED = 143  # the trainer's exit code after SIGTERM: the work is not done, a checkpoint holds what was
READING = "reading.json"  # beside a model: how it was read (exposure.py)


@dataclass(frozen=True)
class Spec:
    """Paths are not part of what is trained; the parameters and the bytes of the plan are.

    window: tokens in one; end: id of <|endoftext|>, which also begins a document; tokens: shard name -> token Parquet;
    resume: files of another run's checkpoint to begin with, by name; none: begin anew.
    """

    params: TrainParams
    vocab_size: int
    window: int
    end: int
    pad: int
    plan: Path
    tokens: Mapping[str, Path]
    validation_plan: Path | None
    validation_tokens: Mapping[str, Path]
    scratch: Path
    resume: Mapping[str, Path] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """As JSON; a reader sees all of it or none."""
        aside = path.with_name(f".{path.name}")
        aside.write_text(json.dumps(asdict(self), default=str, indent=1, sort_keys=True), encoding="utf-8")
        aside.replace(path)

    @classmethod
    def read(cls, path: Path) -> Spec:
        """UsageError where the file is missing or not a spec."""
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            plain["params"] = TrainParams(**plain["params"])
            for name in ("plan", "validation_plan", "scratch"):
                plain[name] = Path(plain[name]) if plain[name] is not None else None
            for name in ("tokens", "validation_tokens", "resume"):
                plain[name] = {shard: Path(place) for shard, place in plain[name].items()}
            return cls(**plain)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path}: not a training spec: {error}") from error
