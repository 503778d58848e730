"""Deployments of one's own configuration: the five flows, each with the file as its `config`.

What is deployed is the file's place, not what it says: each run reads it when it begins. So a deployment follows its
file, and nothing of the machine that deployed it (its number of processors, say) is in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL
from prefect.utilities.callables import parameter_schema

from flows.dataset import dataset
from flows.pipeline import pipeline
from flows.pretrain import pretrain
from flows.refresh import refresh
from flows.release import release
from llmcore.errors import LlmcoreError, UsageError
from llmcore.planning.config import load

FLOWS: tuple[Flow[..., Any], ...] = (pipeline, dataset, refresh, pretrain, release)
SCHEDULED = refresh  # what --cron is for
TAG = "llmcore deploy"
ENVIRONMENT = {"GOMP_SPINCOUNT": "100000"}  # see prefect.yaml
PAGE = 200  # deployments that the server lists at once


def deploy(config: Path, cron: str | None, timezone: str, pool: str) -> list[dict[str, Any]]:
    """Make, or bring up to date, the deployments of a configuration; returns their rows as `deployments` does.

    cron: when to refresh; None leaves the schedule that there is. Raises UsageError if the file is no configuration, or
    the server refuses the schedule.
    """
    name, path = load(config).name, str(config.resolve())
    given = None if cron is None else [_schedule(cron, timezone)]
    with _client() as client:
        _make_pool(client, pool)
        schedules = _schedules(client, name) if given is None else given
        for each in FLOWS:
            client.create_deployment(
                flow_id=client.create_flow(each),
                name=name,
                description=(each.description or "").strip().split("\n\n")[0],
                entrypoint=f"{each.fn.__module__}.{each.fn.__name__}",
                work_pool_name=pool,
                parameters={"config": path},
                parameter_openapi_schema=parameter_schema(each).model_dump_for_openapi(),
                enforce_parameter_schema=True,
                job_variables={"env": ENVIRONMENT},
                schedules=schedules if each is SCHEDULED else None,
                pull_steps=[],
                tags=[TAG],
            )
        return [row for row in _rows(client) if row["file"] == path]


def deployments() -> list[dict[str, Any]]:
    """What `deploy` made on this server: {deployment, file, schedule}."""
    with _client() as client:
        return _rows(client)


def remove(config: Path) -> list[str]:
    """Delete the deployments of a configuration file, which need not be there any more; returns their names.

    UsageError if there are none.
    """
    path = str(config.resolve())
    with _client() as client:
        found = [made for made in _deployed(client) if made.parameters.get("config") == path]
        if not found:
            raise UsageError(f"no deployment follows {path} on {PREFECT_API_URL.value()}; --list names those there are")
        names = [_name(client, made) for made in found]
        for made in found:
            client.delete_deployment(made.id)
        return sorted(names)


@contextmanager
def _client() -> Iterator[SyncPrefectClient]:
    """LlmcoreError where no server is named, or it does not answer."""
    if not PREFECT_API_URL.value():
        raise UsageError(
            "no Prefect server is named: `prefect server start` in a shell of its own, then "
            "`export PREFECT_API_URL=http://127.0.0.1:4200/api`"
        )
    try:
        with get_client(sync_client=True) as client:
            yield client
    except PrefectHTTPStatusError as error:
        raise UsageError(f"the Prefect server refuses: {_said(error)}") from error
    except httpx.HTTPError as error:
        raise LlmcoreError(f"the Prefect server {PREFECT_API_URL.value()} does not answer: {error}") from error


def _said(error: PrefectHTTPStatusError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("Response:")), lines[0])


def _make_pool(client: SyncPrefectClient, name: str) -> None:
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type="process"))


def _schedule(cron: str, timezone: str) -> DeploymentScheduleCreate:
    try:
        return DeploymentScheduleCreate(schedule=CronSchedule(cron=cron, timezone=timezone), active=True)
    except ValueError as error:
        raise UsageError(
            f"--cron {cron!r}: not a schedule such as '17 3 * * *' (minute hour day month weekday)"
        ) from error


def _schedules(client: SyncPrefectClient, name: str) -> list[DeploymentScheduleCreate]:
    """Those that there are, because the server drops what is not named anew."""
    try:
        found = client.read_deployment_by_name(f"{SCHEDULED.name}/{name}").schedules
    except ObjectNotFound:
        return []
    return [DeploymentScheduleCreate(schedule=each.schedule, active=each.active) for each in found]


def _deployed(client: SyncPrefectClient) -> list[DeploymentResponse]:
    ours = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG]))
    found: list[DeploymentResponse] = []
    while True:
        page = client.read_deployments(deployment_filter=ours, limit=PAGE, offset=len(found))
        found += page
        if len(page) < PAGE:
            return found


def _rows(client: SyncPrefectClient) -> list[dict[str, Any]]:
    rows = [
        {
            "deployment": _name(client, made),
            "file": str(made.parameters.get("config", "")),
            "refresh": ", ".join(_cron(schedule) for schedule in made.schedules),
        }
        for made in _deployed(client)
    ]
    return sorted(rows, key=lambda row: (row["file"], row["deployment"]))


def _cron(schedule: DeploymentSchedule) -> str:
    timezone = getattr(schedule.schedule, "timezone", None) or "UTC"
    words = f"{getattr(schedule.schedule, 'cron', schedule.schedule)} {timezone}"
    return words if schedule.active else f"{words} (paused)"


def _name(client: SyncPrefectClient, made: DeploymentResponse) -> str:
    return f"{client.read_flow(made.flow_id).name}/{made.name}"


def run(config: Path | None, cron: str | None, timezone: str, pool: str, listing: bool, removing: bool) -> Any:
    """What `llmcore deploy` calls; returns rows to print."""
    if listing:
        return deployments()
    if config is None:
        raise UsageError("deploy: name the configuration file; the quickstart's deployments are made by prefect deploy")
    if removing:
        return [{"removed": name} for name in remove(config)]
    return deploy(config, cron, timezone, pool)
