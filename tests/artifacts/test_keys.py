"""Identity: equal recipes have equal keys, everything that matters changes the key, nothing unstable gets in."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcore.artifacts.keys import UnstableValueError, canonical_json, difference, key_of

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
plain = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4))


def shuffled(value: object, reverse: bool) -> object:
    if isinstance(value, dict):
        return {k: shuffled(v, reverse) for k, v in sorted(value.items(), reverse=reverse)}
    return [shuffled(v, reverse) for v in value] if isinstance(value, list) else value


@given(plain)
def test_key_does_not_depend_on_key_order(value: object) -> None:
    assert key_of(shuffled(value, True)) == key_of(shuffled(value, False)) == key_of(value)


@given(plain)
def test_canonical_json_is_json_of_the_same_value(value: object) -> None:
    assert json.loads(canonical_json(value)) == value


@given(plain, plain)
def test_different_values_have_different_keys(a: object, b: object) -> None:
    assert (key_of(a) == key_of(b)) == (canonical_json(a) == canonical_json(b))


@pytest.mark.parametrize("value", [object(), Path("x"), {1: 2}, float("nan"), float("inf"), {"a": {1, 2}}, b"x"])
def test_a_value_without_stable_encoding_is_an_error(value: object) -> None:
    with pytest.raises(UnstableValueError, match=r"encoding|JSON form|not a string"):
        canonical_json({"params": value})


def test_difference_names_the_field() -> None:
    old = {"params": {"bands": 14, "rows": 8}, "version": 1}
    new = {"params": {"bands": 20, "rows": 8}, "version": 1}
    assert list(difference(old, new)) == [("params.bands", 14, 20)]
