"""The REST API of a Prefect server, and its command line."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.prefect_server import PREFECT, wait_for

ROOT = Path(__file__).parents[1]
ENDS = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def prefect(*words: str, env: dict[str, str]) -> str:
    done = subprocess.run([*PREFECT, *words], env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"prefect {' '.join(words)}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


class Api:
    """The server's REST API."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=30)

    def post(self, path: str, **body: Any) -> Any:
        answer = self.http.post(path, json=body)
        for pause in (0.5, 1, 2, 4):  # the server says 503 while SQLite is busy; Prefect's own client tries again too
            if answer.status_code != 503:
                break
            time.sleep(pause)
            answer = self.http.post(path, json=body)
        answer.raise_for_status()
        return answer.json()

    def get(self, path: str) -> Any:
        answer = self.http.get(path)
        answer.raise_for_status()
        return answer.json()

    def start(self, deployment: str, config: Path) -> str:
        found = self.get(f"/deployments/name/{deployment}")
        settings = yaml.safe_load(config.read_text())
        for source in settings["sources"]:
            if "path" in source:
                source["path"] = str(config.parent / source["path"])
        run = self.post(f"/deployments/{found['id']}/create_flow_run", parameters={"config": settings})
        return str(run["id"])

    def state(self, run: str) -> str:
        return str(self.get(f"/flow_runs/{run}")["state"]["type"])

    def finished(self, run: str, seconds: float = 400) -> str:
        wait_for(lambda: self.state(run) in ENDS, f"end of flow run {run}", seconds)
        return self.state(run)

    def task_runs(self, run: str, least: int = 1) -> list[dict[str, Any]]:
        """Of a run that has ended. The server writes their states down a moment after the flow's."""

        def all_ended() -> bool:
            found = self.tasks(run)
            return len(found) >= least and all(task["state"] and task["state"]["type"] in ENDS for task in found)

        wait_for(all_ended, f"states of the {least} tasks of flow run {run}")
        return self.tasks(run)

    def tasks(self, run: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            page = self.post(
                "/task_runs/filter",
                flow_runs={"id": {"any_": [run]}},
                limit=200,
                offset=len(found),
                sort="EXPECTED_START_TIME_ASC",
            )
            found += page
            if len(page) < 200:
                return found

    def artifact_page(self, key: str, run: str) -> str:
        """Where the UI shows what a run made under a key."""
        wanted = {"key": {"any_": [key]}, "flow_run_id": {"any_": [run]}}
        (found,) = self.post("/artifacts/filter", artifacts=wanted)
        return f"{self.ui}/v2/artifacts/artifact/{found['id']}"

    @property
    def ui(self) -> str:
        return str(self.http.base_url).rstrip("/").removesuffix("/api")

    def artifact(self, key: str) -> dict[str, Any] | None:
        answer = self.http.get(f"/artifacts/{key}/latest")
        if answer.status_code == 404:
            return None
        answer.raise_for_status()
        latest: dict[str, Any] = answer.json()
        return latest
