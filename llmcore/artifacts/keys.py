"""Identity: canonical JSON, its SHA-256, and the difference of two recipes field by field."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmcore.errors import LlmcoreError

CHECK = "check"  # the hash of a record's other fields


class UnstableValueError(LlmcoreError):
    """A value has no encoding that is equal on every machine and in every process."""


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no white space; equal values give equal bytes.

    Accepts None, bool, int, finite float, str, and lists, tuples and string-keyed mappings of these.
    Raises UnstableValueError for anything else, naming its place, because `str()` of an object is no identity.
    """
    _check(value, "$")
    return json.dumps(
        _plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def key_of(value: Any) -> str:
    """Hex SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def with_check(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with the hash of all it says, for `without_check` to look at."""
    return {**record, CHECK: key_of(record)}


def without_check(record: Mapping[str, Any]) -> dict[str, Any]:
    """What `with_check` was given. ValueError if it was damaged since; records of 0.1 have no hash and pass."""
    rest = {name: value for name, value in record.items() if name != CHECK}
    if CHECK in record and record[CHECK] != key_of(rest):
        raise ValueError("its hash differs")
    return rest


def deciding_fields(params: Any) -> dict[str, Any]:
    """A parameter dataclass as plain data, without the fields that change no byte of what is made.

    Those are marked `field(metadata={"outside_key": True})`: how often to save, when to give up waiting.
    """
    outside = {field.name for field in dataclasses.fields(params) if field.metadata.get("outside_key")}
    return {name: value for name, value in dataclasses.asdict(params).items() if name not in outside}


def file_digest(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def difference(old: Any, new: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted field, old value, new value) wherever two recipes differ; a missing field reads None."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted({*old, *new}):
            yield from difference(old.get(name), new.get(name), f"{place}.{name}" if place else str(name))
    elif old != new:
        yield place, old, new


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _check(value: Any, place: str) -> None:
    if value is None or type(value) in (bool, str):
        return
    if type(value) is int:
        return
    if type(value) is float:
        if not math.isfinite(value):
            raise UnstableValueError(f"{place}: {value} has no JSON form; use a finite number or null")
        return
    if isinstance(value, Mapping):
        for name, item in value.items():
            if type(name) is not str:
                raise UnstableValueError(f"{place}: key {name!r} is not a string")
            _check(item, f"{place}.{name}")
        return
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check(item, f"{place}[{index}]")
        return
    raise UnstableValueError(f"{place}: {type(value).__name__} has no stable encoding; store plain data instead")
