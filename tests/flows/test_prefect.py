"""The flows under a real Prefect server and a real worker: deploy, run, look, cancel, resume, refresh."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from llmcore.artifacts.manifest import Manifest, manifests
from llmcore.artifacts.recipe import StoreFiles
from llmcore.artifacts.store import open_store
from llmcore.planning.chain import build
from llmcore.planning.config import load
from llmcore.quickstart import bundled
from llmcore.release.lineage import unlisted
from llmcore.sources.site import Site
from tests import browser
from tests.browser import Page
from tests.prefect_api import ENDS, ROOT, Api, prefect
from tests.prefect_server import PREFECT, free_port, running, wait_for
from tests.small import TINY_TRAINING, small_config

pytestmark = pytest.mark.slow


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


@dataclass(frozen=True)
class Shown:
    """A configuration that was deployed, and its one whole run, at which several tests look."""

    config: Path
    run: str


def llmcore(*words: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llmcore.cli", *words], env=env, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def shown(api: Api, prefect_server: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Shown:
    config = small_config(tmp_path_factory.mktemp("shown"), name="shown")
    done = llmcore("deploy", str(config), "--cron", "17 3 * * *", env=prefect_server)
    assert done.returncode == 0, done.stderr
    deployment = api.get("/deployments/name/pipeline/shown")
    run = api.post(f"/deployments/{deployment['id']}/create_flow_run", parameters={})["id"]
    assert api.finished(run) == "COMPLETED"
    return Shown(config, run)


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    with browser.page() as page:
        yield page


def test_a_deployment_runs_and_the_server_shows_all_of_it(api: Api, shown: Shown) -> None:
    steps = list(build(load(shown.config)).until(None))
    names = {task["name"].rsplit("-", 1)[0] for task in api.task_runs(shown.run, least=len(steps))}
    assert {step.name for step in steps} < names
    assert {"collect notes", "clean", "dedup", "train", "evaluate", "publish", "clean shards"} <= names
    assert re.fullmatch(r"shown \d{4}-\d\d-\d\d \d\d:\d\d", api.get(f"/flow_runs/{shown.run}")["name"])

    for key, kind, words in (
        ("shown-funnel", "table", "rules that took most"),
        ("shown-loss", "markdown", "data:image/svg+xml"),
        ("shown-samples", "markdown", "<b>"),
        ("shown-evaluation", "markdown", "byte"),
        ("shown-lineage", "markdown", "data:image/svg+xml"),
    ):
        artifact = api.artifact(key)
        assert artifact is not None, key
        assert artifact["type"] == kind
        assert words in json.dumps(artifact["data"])
    bars = api.post(
        "/artifacts/filter", artifacts={"flow_run_id": {"any_": [shown.run]}, "type": {"any_": ["progress"]}}
    )
    assert bars
    assert not [bar["key"] for bar in bars if bar["key"]], "the list of artifacts is not for progress bars"

    deployment = api.get("/deployments/name/pipeline/shown")
    again = api.post(f"/deployments/{deployment['id']}/create_flow_run", parameters={})["id"]
    assert api.finished(again) == "COMPLETED"
    cached = len(steps) - 1  # the source's snapshot is the dataset's: nothing asks for it again
    states = [task["state"]["name"] for task in api.task_runs(again, least=cached)]
    assert states == ["Cached"] * cached


def test_an_export_says_beside_the_hashed_files_when_where_and_how_fast(shown: Shown, tmp_path: Path) -> None:
    store = f"file://{shown.config.parent}/store"
    done = llmcore("export", "shown", str(tmp_path / "model"), "--store", store, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "model" / "run.html").read_text()
    for words in ("tokens a second", "cores", f"{datetime.now(UTC):%Y-}", "train/", "llmcore 0."):
        assert words in page, words
    bill = json.loads((tmp_path / "model" / "lineage.json").read_text())
    assert set(unlisted(tmp_path / "model", bill)) == {"run.html"}, "what is measured is no part of what is vouched for"
    for name in ("report.html", "README.md"):
        told = (tmp_path / "model" / name).read_text()
        assert socket.gethostname() not in told.split()
        assert "run.html" in told


def test_deployments_follow_their_file_and_can_be_listed_and_removed(
    api: Api, shown: Shown, prefect_server: dict[str, str]
) -> None:
    assert llmcore("deploy", str(shown.config), env=prefect_server).returncode == 0  # once more, and the schedule stays
    rows = json.loads(llmcore("deploy", "--list", "--json", env=prefect_server).stdout)
    flows = {"pipeline", "dataset", "refresh", "pretrain", "release"}
    assert {row["deployment"] for row in rows} == {f"{flow}/shown" for flow in flows}
    assert [row["refresh"] for row in rows if row["refresh"]] == ["17 3 * * * UTC"]
    deployment = api.get("/deployments/name/pipeline/shown")
    assert deployment["parameters"] == {"config": str(shown.config)}, "nothing of this machine, nothing frozen"

    other = small_config(shown.config.parent, name="other")
    assert llmcore("deploy", str(other), env=prefect_server).returncode == 0
    other.write_text(other.read_text().replace("name: other", "name: renamed"))
    deployment = api.get("/deployments/name/pipeline/other")
    run = api.post(f"/deployments/{deployment['id']}/create_flow_run", parameters={"until": "clean"})["id"]
    assert api.finished(run) == "COMPLETED"
    assert api.get(f"/flow_runs/{run}")["name"].startswith("renamed ")
    other.unlink()
    done = llmcore("deploy", str(other), "--remove", env=prefect_server)
    assert done.returncode == 0, done.stderr
    rows = json.loads(llmcore("deploy", "--list", "--json", env=prefect_server).stdout)
    assert {row["file"] for row in rows} == {str(shown.config)}
    again = llmcore("deploy", str(other), "--remove", env=prefect_server)
    assert again.returncode == 2
    assert "no deployment follows" in again.stderr


def test_a_configuration_file_and_fields_are_given_on_the_command_line(
    api: Api, shown: Shown, prefect_server: dict[str, str]
) -> None:
    words = ("-p", f"config={shown.config}", "-p", "name=told", "-p", "until=clean", "-p", "epochs=2")
    prefect("deployment", "run", "pipeline/quickstart", *words, "--watch", env=prefect_server)
    (run,) = api.post("/flow_runs/filter", flow_runs={"name": {"like_": "told "}})
    assert run["state"]["type"] == "COMPLETED"
    assert run["parameters"]["epochs"] == 2


def test_the_form_starts_a_run_with_what_is_typed(api: Api, shown: Shown, tab: Page) -> None:
    deployment = api.get("/deployments/name/pipeline/shown")
    tab.open(f"{api.ui}/v2/deployments/deployment/{deployment['id']}/run")
    tab.wait(
        f"[...document.querySelectorAll('textarea')].some(e => e.value === {json.dumps(str(shown.config))})", "form"
    )
    typed: dict[str, Any] = {"name": "formed", "window": 32, "epochs": 1.5, "until": "clean"}
    typed["sources"] = f"- kind: text\n  name: typed\n  path: {shown.config.parent}/texts\n  licence: CC0-1.0"
    for field, value in typed.items():
        tab.fill(field, str(value))
    tab.click("[...document.querySelectorAll('button')].find(button => button.innerText === 'Submit')")

    def started() -> list[dict[str, Any]]:
        made: list[dict[str, Any]] = api.post("/flow_runs/filter", deployments={"id": {"any_": [deployment["id"]]}})
        return [run for run in made if run["parameters"].get("name") == "formed"]

    wait_for(started, "start of the run")
    (run,) = started()
    assert {name: run["parameters"].get(name) for name in typed} == typed
    assert api.finished(run["id"]) == "COMPLETED"
    names = {task["name"].rsplit("-", 1)[0] for task in api.task_runs(run["id"])}
    assert "collect typed" in names
    assert "train" not in names


# what a picture's pixels are: how many of them are neither white nor transparent, and in how many colours
PAINTED = """(async () => {
  const image = document.images[0], canvas = document.createElement("canvas");
  if (!image || !image.naturalWidth) return [0, 0];  // not there yet
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const pen = canvas.getContext("2d");
  pen.drawImage(image, 0, 0);
  const data = pen.getImageData(0, 0, canvas.width, canvas.height).data, colours = new Set();
  let painted = 0;
  for (let i = 0; i < data.length; i += 4)
    if (data[i + 3] && data[i] + data[i + 1] + data[i + 2] < 740) {
      painted++;
      colours.add((data[i] >> 4) + "," + (data[i + 1] >> 4) + "," + (data[i + 2] >> 4));
    }
  return [painted, colours.size];
})()"""


@pytest.mark.parametrize("key", ["loss", "lineage"])
def test_a_picture_is_one_in_the_browser(api: Api, shown: Shown, tab: Page, key: str) -> None:
    tab.open(api.artifact_page(f"shown-{key}", shown.run))
    # lines, boxes, letters; a picture without its style is black
    tab.wait(f"{PAINTED}.then(([painted, colours]) => painted > 3000 && colours > 5)", "a picture in its colours")
    if key == "lineage":
        tab.wait_text("collect notes")
    assert "base64" not in tab.text()
    assert "graph TD" not in tab.text()


def test_tables_and_texts_are_what_they_should_be_in_the_browser(api: Api, shown: Shown, tab: Page) -> None:
    tab.open(api.artifact_page("shown-funnel", shown.run))
    tab.wait_text("decontaminate")
    for words in ("source", "generation", "dropped %", "rules that took most", "text kept", "notes", "g000"):
        assert words in tab.text(), words
    tab.open(api.artifact_page("shown-evaluation", shown.run))
    tab.wait_text("bits per byte, lower is better")
    # the page draws itself anew whenever it hears of the run: what is waited for is one look at all of it
    head = "(document.querySelector('thead tr')?.innerText ?? '').replace(/\\s+/g, ' ')"
    for words in ("this model", "byte 5-gram, interpolated", "xz -9"):
        tab.wait(f"{head}.includes({json.dumps(words)})", "the model and its baselines side by side")
    tab.wait("/(Worse|Better|No)\\b[^]* than a byte/.test(document.body?.innerText)", "verdict")

    store = open_store(f"file://{shown.config.parent}/store")
    (evaluation,) = list(manifests(store, "evaluate"))
    samples = json.loads(StoreFiles(store, evaluation.outputs).path("samples.json").read_text(encoding="utf-8"))
    tab.open(api.artifact_page("shown-samples", shown.run))
    for sample in samples:
        letters = json.dumps("".join((sample["prompt"] + sample["text"]).split()))
        tab.wait(
            f"(document.body?.innerText ?? '').replace(/\\s+/g, '').includes({letters})", "every letter of a sample"
        )


def test_what_is_no_configuration_is_refused_before_it_runs(api: Api) -> None:
    deployment = api.get("/deployments/name/pipeline/quickstart")
    for wrong in ({"config": {"name": "x", "sources": 3}}, {"epochs": "many"}, {"formats": ["q9"]}):
        refused = api.http.post(f"/deployments/{deployment['id']}/create_flow_run", json={"parameters": wrong})
        assert refused.status_code in (409, 422), wrong


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


def test_a_suspended_training_leaves_a_checkpoint_from_which_the_resumed_run_goes_on(api: Api, tmp_path: Path) -> None:
    config = small_config(tmp_path, name="suspended", train=TINY_TRAINING | {"steps": 600, "checkpoint_every": 0})
    run = api.start("pipeline/quickstart", config)
    scratch = tmp_path / "store" / "runs"
    wait_for(lambda: any(scratch.glob("*/scratch/**/heartbeat.json")), "first step", 300)
    asked = {"type": "PAUSED", "name": "Suspended", "state_details": {"pause_reschedule": True}}
    api.post(f"/flow_runs/{run}/set_state", state=asked, force=True)
    wait_for(lambda: any(path.is_dir() for path in scratch.glob("*/scratch/**/step-*")), "checkpoint", 100)
    wait_for(lambda: all(task["state"]["type"] in ENDS for task in api.tasks(run)), "end of its tasks", 100)
    assert api.get(f"/flow_runs/{run}")["state"]["name"] == "Suspended"
    store = open_store(f"file://{tmp_path}/store")
    assert list(manifests(store, "train")) == []
    api.post(f"/flow_runs/{run}/resume")
    assert api.finished(run) == "COMPLETED"
    (model,) = list(manifests(store, "train"))
    assert model.run["went_on"]


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
