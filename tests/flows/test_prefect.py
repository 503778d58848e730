"""The flows under a real Prefect server and a real worker: deploy, run, look, cancel, resume, refresh."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from llmcore.artifacts.manifest import Manifest, manifests
from llmcore.artifacts.recipe import StoreFiles
from llmcore.artifacts.store import open_store
from llmcore.planning.chain import build
from llmcore.planning.config import load
from llmcore.quickstart import bundled
from llmcore.sources.site import Site
from tests.prefect_server import PREFECT, free_port, running, wait_for
from tests.small import TINY_TRAINING, small_config

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
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
            found = self._task_runs(run)
            return len(found) >= least and all(task["state"] and task["state"]["type"] in ENDS for task in found)

        wait_for(all_ended, f"states of the {least} tasks of flow run {run}")
        return self._task_runs(run)

    def _task_runs(self, run: str) -> list[dict[str, Any]]:
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

    def artifact(self, key: str) -> dict[str, Any] | None:
        answer = self.http.get(f"/artifacts/{key}/latest")
        if answer.status_code == 404:
            return None
        answer.raise_for_status()
        latest: dict[str, Any] = answer.json()
        return latest


@pytest.fixture(scope="module")
def api(prefect_server: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """Every flow deployed, and a worker at work."""
    prefect("work-pool", "create", "llmcore", "--type", "process", env=prefect_server)
    prefect("--no-prompt", "deploy", "--all", env=prefect_server)
    log = tmp_path_factory.mktemp("worker") / "worker.log"
    with running([*PREFECT, "worker", "start", "--pool", "llmcore"], log, prefect_server, ROOT):
        made = Api(prefect_server["PREFECT_API_URL"])
        wait_for(lambda: made.post("/work_pools/llmcore/workers/filter"), f"start of the worker ({log})")
        yield made


def test_a_deployment_runs_and_the_server_shows_all_of_it(api: Api, tmp_path: Path) -> None:
    config = small_config(tmp_path, name="shown")
    run = api.start("pipeline/quickstart", config)
    assert api.finished(run) == "COMPLETED"
    steps = list(build(load(config)).until(None))
    names = {task["name"].rsplit("-", 1)[0] for task in api.task_runs(run, least=len(steps))}
    assert {step.name for step in steps} < names
    assert {"collect notes", "clean", "dedup", "train", "evaluate", "publish", "clean shards"} <= names

    for key, kind, words in (
        ("shown-funnel", "table", "dropped"),
        ("shown-loss", "image", "data:image/svg+xml"),
        ("shown-samples", "markdown", ">"),
        ("shown-evaluation", "table", "bits_per_byte"),
        ("shown-lineage", "markdown", "mermaid"),
    ):
        artifact = api.artifact(key)
        assert artifact is not None, key
        assert artifact["type"] == kind
        assert words in json.dumps(artifact["data"])
    assert api.artifact("progress-train") is not None

    again = api.start("pipeline/quickstart", config)
    assert api.finished(again) == "COMPLETED"
    cached = len(steps) - 1  # the source's snapshot is the dataset's: nothing asks for it again
    states = [task["state"]["name"] for task in api.task_runs(again, least=cached)]
    assert states == ["Cached"] * cached


def test_the_form_is_made_from_the_configuration_models(api: Api) -> None:
    deployment = api.get("/deployments/name/pipeline/quickstart")
    schema = json.dumps(deployment["parameter_openapi_schema"])
    assert "vocab_size" in schema
    assert "shingle_words" in schema or "bands" in schema
    refused = api.http.post(
        f"/deployments/{deployment['id']}/create_flow_run", json={"parameters": {"config": {"name": "x", "sources": 3}}}
    )
    assert refused.status_code == 409 or refused.status_code == 422


def test_the_refresh_schedule_is_there_and_paused(api: Api) -> None:
    (schedule,) = api.get("/deployments/name/refresh/quickstart")["schedules"]
    assert schedule["schedule"]["cron"]
    assert not schedule["active"]


def test_a_cancelled_training_leaves_a_checkpoint_from_which_the_next_run_goes_on(api: Api, tmp_path: Path) -> None:
    config = small_config(tmp_path, name="cancelled", train=TINY_TRAINING | {"steps": 600, "checkpoint_every": 0})
    run = api.start("pipeline/quickstart", config)
    scratch = tmp_path / "store" / "runs"

    def heartbeat() -> dict[str, Any]:
        for found in scratch.glob("*/scratch/**/heartbeat.json"):
            with suppress(FileNotFoundError):
                return dict(json.loads(found.read_text()))
        return {}

    wait_for(lambda: heartbeat().get("step", 0) >= 20, "twentieth step", 300)
    api.post(f"/flow_runs/{run}/set_state", state={"type": "CANCELLING", "name": "Cancelling"}, force=False)
    assert api.finished(run) == "CANCELLED"
    steps = sorted(path.name for path in scratch.glob("*/scratch/**/step-*") if path.is_dir())
    assert steps, "no checkpoint was left"
    store = open_store(f"file://{tmp_path}/store")
    assert list(manifests(store, "train")) == []
    stopped_at = heartbeat()["step"]
    assert stopped_at < 600

    again = api.start("pipeline/quickstart", config)
    seen = []

    def trained() -> bool:
        seen.append(heartbeat().get("step", stopped_at))
        return bool(list(manifests(store, "train")))

    wait_for(trained, "end of the training", 400)
    assert min(seen) >= stopped_at, "it began anew"
    assert max(seen) > stopped_at
    assert api.finished(again) == "COMPLETED"
    (model,) = list(manifests(store, "train"))
    assert StoreFiles(store, model.outputs).table("history.parquet")["step"].max() == 600


def test_a_refresh_computes_only_what_is_new(api: Api, tmp_path: Path) -> None:
    site, overlay = tmp_path / "site", tmp_path / "overlay"
    overlay.mkdir()
    with tarfile.open(bundled("site.tar.xz")) as archive:
        pages = [member for member in archive if "/en/howto/" in f"/{member.name}" and member.name.endswith(".html")]
        archive.extractall(site, pages, filter="data")
    folder = next(site.rglob("howto"))
    port = free_port()
    url = f"http://127.0.0.1:{port}/{folder.relative_to(site)}/"
    source = {
        "kind": "crawl",
        "name": "manual",
        "licence": "Apache-2.0",
        "start_urls": [url + "auth.html"],
        "allow_private_hosts": [f"127.0.0.1:{port}"],
    }
    config = small_config(tmp_path, name="fresh", sources=[source], split={"validation": 0.0, "test": 0.0})
    with Site(site, port):
        assert api.finished(api.start("dataset/quickstart", config)) == "COMPLETED"
    store = open_store(f"file://{tmp_path}/store")
    before = {m.step: m for m in manifests(store)}

    page = (folder / "auth.html").read_text()
    target = overlay / folder.relative_to(site)
    target.mkdir(parents=True)
    added = "This paragraph was added after the first crawl, and says something that was never said before. "
    words = f"<p>{added * 3}</p>"
    (target / "auth.html").write_text(page.replace("</p>", "</p>" + words, 1))
    body = " ".join(f"The {n}th rule of the new page is that every page has its own words." for n in range(60))
    new = f"<html lang='en'><body><main><h1>New</h1><p>{body}</p></main></body></html>"
    (target / "brand-new.html").write_text(new)
    with Site(site, port, overlay=overlay):
        assert api.finished(api.start("refresh/quickstart", config)) == "COMPLETED"

    made = [m for m in manifests(store) if m.key not in {old.key for old in before.values()}]
    by_step: dict[str, Manifest] = {m.step: m for m in made}
    assert {"tokenizer", "classifier", "benchmarks"}.isdisjoint(by_step), "what is learned stays frozen"
    for step in ("ingest manual", "extract", "clean", "pii", "dedup", "quality", "split", "tokenise"):
        assert by_step[step].run["shards_computed"] == 1, step
    for step, manifest in by_step.items():
        for name, output in before[step].outputs.items():
            # which documents of the first snapshot still stand is what a refresh decides
            decides = manifest.role in ("versions", "plan")
            if name.rsplit("/", 1)[-1].startswith("g000") and not decides:
                assert manifest.outputs[name].blob == output.blob, f"{step}: {name} changed"
    artifact = api.artifact("fresh-refresh")
    assert artifact is not None
    (row,) = json.loads(artifact["data"])
    assert (row["new"], row["changed"], row["gone"]) == (1, 1, 0)


def test_other_task_runners_make_the_same_artifacts(tmp_path: Path, prefect_server: dict[str, str]) -> None:
    digests = []
    for execution in ({"runner": "local", "workers": 2}, {"runner": "dask", "workers": 2}):
        folder = tmp_path / str(execution["runner"])
        config = small_config(folder, execution=execution)
        done = subprocess.run(
            [sys.executable, "-m", "llmcore.cli", "run", str(config), "--until", "split"],
            env=prefect_server,
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (split,) = list(manifests(open_store(f"file://{folder}/store"), "split"))
        digests.append(split.digest)
    assert digests[0] == digests[1]
