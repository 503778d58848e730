"""What running a chain would do: cached or to run, and the very field that changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmcore.artifacts import jobs, runner
from llmcore.artifacts.index import last_of
from llmcore.artifacts.keys import difference
from llmcore.artifacts.manifest import ArtifactRef, Manifest, manifest_of
from llmcore.artifacts.provenance import code_digest
from llmcore.artifacts.recipe import Recipe, Step, own_identity, resolve
from llmcore.artifacts.store import Store
from llmcore.planning.chain import Chain


@dataclass(frozen=True)
class PlannedStep:
    """One step: `state` is "cached" or "run"; `why` names what changed, or what it waits for.

    ref: what is there; share: of its shards that are still to be computed, where that is known.
    """

    step: str
    state: str
    why: str
    ref: ArtifactRef | None = None
    share: float = 1.0

    def plain(self) -> dict[str, str]:
        return {"step": self.step, "state": self.state, "why": self.why}


def plan_chain(store: Store, chain: Chain) -> Iterator[PlannedStep]:
    """Walk the chain without running anything.

    A step behind one that must run is reported as "run", because its inputs are not known yet; if the rebuilt input
    turns out byte for byte the same, the runner will still find its artifact and stop the rebuild there.
    """
    done: dict[str, ArtifactRef] = dict(chain.pinned)
    for step in chain.steps.values():
        if step.name in done:
            yield PlannedStep(step.name, "cached", "pinned: the dataset's snapshot", done[step.name])
            continue
        missing = [name for origin in step.inputs.values() for name in origin.steps if name not in done]
        if missing:
            changed = _changed_parameters(step, last_of(store, step.stage.name, step.name))
            behind = f"behind {', '.join(dict.fromkeys(missing))}" if len(missing) < 4 else "behind the steps above"
            yield PlannedStep(step.name, "run", "; ".join([*changed, behind]))
            continue
        recipe = resolve(store, step, done)
        found = runner.find(store, recipe)
        if found is None:
            reasons, share = _why(recipe, last_of(store, step.stage.name, step.name)), 1.0
            if step.stage.kind == "per_shard":
                todo, total = len(jobs.jobs_to_do(store, recipe)), len(recipe.files[step.stage.reads[0]])
                reasons.append(f"{todo} of {total} shards")
                share = todo / max(1, total)
            yield PlannedStep(step.name, "run", "; ".join(reasons), share=share)
            continue
        done[step.name] = found
        code = code_digest(*step.stage.modules)
        warning = "" if manifest_of(store, found).code == code else "; code changed since, under the same version"
        yield PlannedStep(step.name, "cached", f"{found.digest[:12]}{warning}", found)


def _why(recipe: Recipe, before: Manifest | None) -> list[str]:
    if before is None:
        reasons = ["never run"]
    else:
        old, new = dict(before.identity), recipe.identity
        reasons = [
            f"{name} {_brief(was)} → {_brief(now)}"
            for name, was, now in difference(old, new)
            if not name.startswith("inputs.")
        ]
        reasons += [
            f"input {role} changed" for role in new["inputs"] if old.get("inputs", {}).get(role) != new["inputs"][role]
        ]
    return reasons


def _changed_parameters(step: Step, before: Manifest | None) -> list[str]:
    if before is None:
        return ["never run"]
    now = own_identity(step.stage, step.params)
    was = {name: before.identity.get(name) for name in {*now, "data"}}
    return [f"{name} {_brief(a)} → {_brief(b)}" for name, a, b in difference(was, now)]


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"
