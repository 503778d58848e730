"""What is wrong with a configuration, in words: each mistake with its key, its source, and what was meant perhaps."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from llmcore.planning.kinds import advice

UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
NEAR = 0.75  # difflib's ratio from which a key of the same section is taken for the one that was meant
FAR = 0.6  # and this where no other section has the key as it stands
MOST_HOMES = 3  # a key of more sections says nothing about where it belongs
LONGEST_VALUE = 60


def in_words(error: ValidationError, data: Any, model: type[BaseModel]) -> list[str]:
    """One sentence for each mistake, beginning with the key. data: what was validated; model: against what."""
    # a list of nothing but wrong items counts as too short for pydantic
    found = [one for one in error.errors() if not (one["type"] == "too_short" and one.get("input"))]
    return [_sentence(one, data, model) for one in found]


def _sentence(found: Mapping[str, Any], data: Any, model: type[BaseModel]) -> str:
    loc, kind = tuple(found["loc"]), found["type"]
    place = _place(loc, data)
    if kind in UNKNOWN:
        return f"{place}: unknown key{_meant(loc, data, model)}"
    if kind == "missing":
        return f"{place}: missing, add it"
    if kind == "union_tag_not_found":
        return f"{_place((*loc, 'kind'), data)}: missing, add it: one of {_tags(found, model)}"
    if kind == "union_tag_invalid":
        tag = str(found["ctx"]["tag"])
        instead = advice(tag, _tags(found, model).split(", "))
        return (
            f"{_place((*loc, 'kind'), data)}: {tag[:LONGEST_VALUE]!r} is none of {_tags(found, model)}"
            f"{f'; {instead}' if instead else ''}"
        )
    given = re.sub(r"//[^/@\s]+@", "//…@", repr(found.get("input")))  # credentials in an address
    return f"{place}: {found['msg'].removeprefix('Value error, ')} (got {given[:LONGEST_VALUE]})"


def _place(loc: Sequence[Any], data: Any) -> str:
    """`train.layers`; of a source `sources.0.path (source 'notes')`, without its kind, which pydantic puts between."""
    parts = [str(part) for part in loc]
    if len(loc) < 2 or parts[0] != "sources" or not isinstance(loc[1], int):
        return ".".join(parts)
    source = _source(data, loc[1])
    if len(parts) > 2 and parts[2] == str(source.get("kind")):
        del parts[2]
    name = source.get("name")
    return ".".join(parts) + (f" (source {name!r})" if isinstance(name, str) else "")


def _source(data: Any, number: int) -> Mapping[str, Any]:
    sources = data.get("sources") if isinstance(data, Mapping) else None
    found = sources[number] if isinstance(sources, list | tuple) and number < len(sources) else None
    return found if isinstance(found, Mapping) else {}


def _meant(loc: Sequence[Any], data: Any, model: type[BaseModel]) -> str:
    """What the unknown key at this place should have been, as far as it can be told."""
    key, sections = str(loc[-1]), _sections(model)
    section = "sources" if loc[0] == "sources" and len(loc) > 2 else str(loc[0]) if len(loc) > 1 else ""
    own = sections.get(section, ())
    if section == "sources":
        own = _kinds(model).get(str(_source(data, loc[1]).get("kind")), ())
    near = difflib.get_close_matches(key, own, n=1, cutoff=NEAR)
    homes = [home for home, keys in sections.items() if key in keys and home != section]
    if not near and 0 < len(homes) <= MOST_HOMES:
        # a key of the top level is no key of a section
        return f"; it belongs {' or '.join(f'under {home}' if home else 'to the top level' for home in homes)}"
    near = near or difflib.get_close_matches(key, own, n=1, cutoff=FAR)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; there are {', '.join(own)}" if 0 < len(own) <= 12 else "; remove it"


def _sections(model: type[BaseModel]) -> dict[str, tuple[str, ...]]:
    """Section -> its keys; "" for the top level, `sources` for those of any kind of source."""
    found = {"": tuple(model.model_fields)}
    for name, field in model.model_fields.items():
        keys = _keys(field.annotation)
        if keys:
            found[name] = keys
    every = dict.fromkeys(key for keys in _kinds(model).values() for key in keys)
    return found | {"sources": tuple(every)}


def _kinds(model: type[BaseModel]) -> dict[str, tuple[str, ...]]:
    """Kind of source -> its keys."""
    found: dict[str, tuple[str, ...]] = {}
    for source in _models(model.model_fields["sources"].annotation):
        for kind in get_args(source.model_fields["kind"].annotation):
            found[str(kind)] = tuple(source.model_fields)
    return found


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _keys(annotation: Any) -> tuple[str, ...]:
    if dataclasses.is_dataclass(annotation):
        return tuple(field.name for field in dataclasses.fields(annotation))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return tuple(annotation.model_fields)
    return ()


def _tags(found: Mapping[str, Any], model: type[BaseModel]) -> str:
    return ", ".join(_kinds(model))
