"""kill -9 at random moments of every stage, again and again: does the model still come out byte for byte?

    python -m benchmarks.kills [--kills 200] [--seed 1]

A small configuration is run once undisturbed. Then it is run and killed: a stage is drawn, the run is watched (its root
in the store says what it is at) until it is at that stage, and killed a moment later, either alone or with all that it
started. The next run goes on from there; when one comes through, every artifact is compared with the undisturbed one's,
and it begins anew with an empty store. Prints one JSON line: kills by stage, runs that came through, and whether
everything was identical; exits with 1 if not.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from llmcore.account.verify import verify
from llmcore.artifacts import roots
from llmcore.artifacts.index import resolve_ref, summaries
from llmcore.artifacts.store import Store, open_store
from llmcore.planning.chain import build
from llmcore.planning.config import load
from tests.prefect_server import environment as own_environment
from tests.small import small_config

POLL_SECONDS = 0.005
LONGEST_WAIT = 0.8  # seconds between a stage's begin and the kill, at most


def digests(store: Store) -> dict[str, str]:
    """Step -> digest of what it made."""
    return {summary.step: summary.digest for summary in summaries(store)}


def run_to_the_end(config: Path, environment: Mapping[str, str]) -> None:
    done = subprocess.run(command(config), env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"a run that nobody disturbed ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")


def command(config: Path) -> list[str]:
    return [sys.executable, "-m", "llmcore.cli", "run", str(config)]


def stage_at(store: Store) -> str | None:
    """What the run under way is at, as its root says."""
    with suppress(Exception):  # read in the middle of a move
        for run in roots.runs(store):
            if run.alive and run.claim:
                return run.claim["of"]
    return None


def killed_at(process: subprocess.Popen[bytes], store: Store, wanted: str, draws: random.Random) -> str | None:
    """Kill the run a moment after it came to the stage (or to one behind it); None if it came through before."""
    begun = None
    wait = draws.uniform(0, LONGEST_WAIT)
    while process.poll() is None:
        at = stage_at(store)
        if begun is None and at == wanted:
            begun = time.monotonic()
        if begun is not None and time.monotonic() - begun >= wait:
            with suppress(psutil.NoSuchProcess):
                family = psutil.Process(process.pid).children(recursive=True) if draws.random() < 0.5 else []
                for one in (psutil.Process(process.pid), *family):
                    with suppress(psutil.NoSuchProcess):
                        one.kill()
            process.wait()
            return at or wanted
        time.sleep(POLL_SECONDS)
    return None


def storm(kills: int, seed: int, environment: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """Until so many kills have hit, and the last run came through. folder: empty.

    Returns kills, by_stage, through, and differing: what is not as it is without any kill, which must be nothing.
    """
    draws = random.Random(seed)
    calm = small_config(folder / "calm")
    run_to_the_end(calm, environment)
    wanted = digests(open_store(f"file://{folder}/calm/store"))
    stages = list(dict.fromkeys(step.stage.name for step in build(load(calm)).steps.values()))  # as they follow
    hit: Counter[str] = Counter()
    through, differing = 0, []
    while sum(hit.values()) < kills:
        home = folder / f"storm-{through}"
        config, store = small_config(home), open_store(f"file://{home}/store")
        drawn = draws.sample(stages, min(len(stages), kills - sum(hit.values())))
        for stage in sorted(drawn, key=stages.index):
            process = subprocess.Popen(
                command(config), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            at = killed_at(process, store, stage, draws)
            if at is None:
                break
            hit[at] += 1
        run_to_the_end(config, environment)
        through += 1
        made = digests(store)
        differing += [f"{home.name} {step}" for step in wanted if made.get(step) != wanted[step]]
        differing += [f"{home.name} {m.step} {name}" for m, name, _ in verify(store, resolve_ref(store, "small"))]
    return {
        "kills": sum(hit.values()),
        "by_stage": dict(sorted(hit.items())),
        "through": through,
        "differing": differing,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        told = storm(asked.kills, asked.seed, own_environment(Path(folder)), Path(folder))
    print(json.dumps({"benchmark": "kills", **told}))
    sys.exit(1 if told["differing"] else 0)


if __name__ == "__main__":
    main()
