"""Runs of toy chains that begin, force, move refs and die while others collect: `python -m tests.artifacts.storm`."""

from __future__ import annotations

import os
import random
import sys
import time

from llmcore.account.verify import verify
from llmcore.artifacts import roots, runner
from llmcore.artifacts.manifest import ArtifactRef, manifest_of
from llmcore.artifacts.recipe import From, Step, resolve
from llmcore.artifacts.store import Store, open_store
from tests.toy_stages import KEEP, NUMBERS, TOTAL, KeepParams, NumbersParams, SumParams


def chain(salt: int, divisor: int, seconds: float = 0.0) -> list[Step]:
    return [
        Step("numbers", NUMBERS, NumbersParams(salt=salt)),
        Step("keep", KEEP, KeepParams(divisor=divisor), {"documents": From(("numbers",))}),
        Step("total", TOTAL, SumParams(seconds=seconds), {"documents": From(("keep",))}),
    ]


def go(store: Store, steps: list[Step], name: str, forced: str = "", dies_at: str = "") -> None:
    """One run as the flows make them; raises AssertionError if anything behind its ref is missing at the end."""
    done: dict[str, ArtifactRef] = {}
    with roots.run(store) as root:
        for step in steps:
            recipe = resolve(store, step, done)
            root.claim(recipe)
            if step.name == dies_at:
                os._exit(9)
            done[step.name] = runner.build(store, recipe, force=step.name == forced)
            root.hold(step.name, done[step.name])
        roots.set_ref(store, name, done["total"].plain())
        bad = list(verify(store, manifest_of(store, done["total"])))
        assert not bad, bad


def main(uri: str, seed: int, seconds: float) -> None:
    """Run after run over few recipes, so that what one leaves behind another finds."""
    store, draws, ends = open_store(uri), random.Random(seed), time.monotonic() + seconds
    runs = 0
    while time.monotonic() < ends:
        steps = chain(draws.randrange(3), draws.choice((2, 3, 5)), draws.choice((0.0, 0.05)))
        forced = draws.choice(("", "", "numbers", "keep", "total"))
        go(store, steps, f"name-{draws.randrange(2)}-{seed}", forced)
        runs += 1
    if seed % 2:
        go(store, chain(0, 2), "dies", dies_at=draws.choice(("numbers", "keep", "total")))
    print(runs)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
