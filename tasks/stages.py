"""A stage, or a chunk of its shards, as a Prefect task.

The store decides *cached or run*; Prefect shows it: a task that finds its artifact ends in a `Completed` state named
`Cached`. What passes between tasks is a small reference. Prefect's own result cache stays off: one source of truth.

There is one way to run shards: they are cut into chunks, each a task of the configured task runner. A chunk that runs
on this machine is done by one of its worker processes; on a cluster the worker that has the task does it.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed, State
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect.utilities.annotations import quote

from llmcore.artifacts import jobs, runner
from llmcore.artifacts.jobs import Memo, ShardJob
from llmcore.artifacts.manifest import ArtifactRef
from llmcore.artifacts.recipe import Recipe, Step, resolve
from llmcore.artifacts.roots import RunRoot
from llmcore.artifacts.store import Store, open_store
from llmcore.errors import LlmcoreError
from llmcore.planning.config import Execution
from tasks.progress import ProgressBar

CHUNKS_A_WORKER = 2  # so that none waits long for the last; Prefect's server takes some hundred tasks a run with ease
CHUNK_BYTES = 1 << 20  # compressed; less is done before another worker has imported what it needs
MOST_JOBS = 5000  # in a chunk: what a killed worker has to be asked about again


@task(cache_policy=NO_CACHE, persist_result=False)
def stage(
    store_uri: str,
    step: Step,
    done: Mapping[str, ArtifactRef],
    memos: Mapping[str, Memo] | None,
    force: bool,
    began: datetime,
) -> ArtifactRef | State[Any]:
    """Find the artifact of a step, or make it: run a global stage, or gather the shards that chunks have computed.

    memos: what the chunks before this task computed; None if the artifact was there already.
    began: when the first of them did.
    """
    store = open_store(store_uri)
    recipe = resolve(store, step, done)
    found = None if force or memos is not None else runner.find(store, recipe)
    if found is not None:
        return Completed(name="Cached", message=f"found {found.stage}/{found.key[:12]}", data=found)
    if step.stage.kind == "per_shard":
        return runner.commit_shards(store, recipe, memos, flow_run.id, began, force)
    with ProgressBar(step.name, step.stage.role) as bar:
        return runner.run_global(store, recipe, bar.report, flow_run.id, waiting=_say_who_holds_it, force=force)


@task(cache_policy=NO_CACHE, persist_result=False)
def shards(store_uri: str, chunk: bytes, workers: int) -> dict[str, Memo]:
    """Compute a chunk of a stage's shards; returns their memos.

    chunk: our own Chunk, pickled, because task runners look into (and Dask rebuilds) what they can look into.
    workers: processes of this machine to share the chunks of a stage; 0 = this very process does it.
    """
    store, work = open_store(store_uri), pickle.loads(chunk)
    return jobs.run_chunk_in_pool(store, work, workers) if workers else jobs.run_chunk(store, work)


class Executor:
    """Runs steps one after another under a run's root; the shards of a step over the configured Prefect task runner.

    found: the steps whose artifact was there already.
    """

    def __init__(self, store: Store, execution: Execution, root: RunRoot) -> None:
        self.store = store
        self.execution = execution
        self.root = root
        self.found: set[str] = set()
        self._stack = ExitStack()
        self._runner: TaskRunner[Any] | None = None

    def run(self, step: Step, done: Mapping[str, ArtifactRef], force: bool = False) -> ArtifactRef:
        """Make or find one step's artifact. LlmcoreError if its work failed; what was there before stays then."""
        recipe, began = resolve(self.store, step, done), datetime.now(UTC)
        self.root.claim(recipe)
        memos = None
        if step.stage.kind == "per_shard" and (force or runner.find(self.store, recipe) is None):
            memos = self._run_shards(recipe, force)
        state = stage.with_options(name=step.name, timeout_seconds=self.execution.timeout_seconds)(
            self.store.uri, quote(step), quote(done), quote(memos), force, began, return_state=True
        )
        ref = state.result()
        if state.name == "Cached":
            self.found.add(step.name)
        if not isinstance(ref, ArtifactRef):
            raise LlmcoreError(f"{step.name}: its task ended without an artifact; see the log above")
        self.root.hold(step.name, ref)
        return ref

    def close(self) -> None:
        self._stack.close()
        jobs.stop_workers()

    def _run_shards(self, recipe: Recipe, force: bool) -> dict[str, Memo]:
        todo = jobs.shard_jobs(recipe) if force else jobs.jobs_to_do(self.store, recipe)
        chunks = self._chunks(recipe, todo)
        local = self.execution.runner == "local"
        workers = self.execution.workers if local and len(chunks) > 1 else 0
        chunk_task = shards.with_options(name=f"{recipe.step.name} shards")
        futures = [
            self._task_runner().submit(
                chunk_task,
                parameters={
                    "store_uri": self.store.uri,
                    "chunk": pickle.dumps(jobs.chunk_of(recipe, chunk, force)),
                    "workers": workers,
                },
            )
            for chunk in chunks
        ]
        memos: dict[str, Memo] = {}
        failed = None
        with ProgressBar(recipe.step.name, in_ui=False) as bar:
            for future in futures:
                bar.report(len(memos), len(todo), "shards")
                future.wait()
                try:
                    memos |= future.result()
                except Exception as error:
                    failed = failed or error
        if failed is not None:
            raise failed
        return memos

    def _chunks(self, recipe: Recipe, todo: Sequence[ShardJob]) -> list[Sequence[ShardJob]]:
        """As many as keep all workers busy to the end, but none too small to be worth a worker's start."""
        if not todo:
            return []
        shards = recipe.files[recipe.stage.reads[0]]
        work = sum(shards[job.shard].bytes for job in todo)
        count = min(CHUNKS_A_WORKER * self.execution.workers, len(todo), math.ceil(max(work, 1) / CHUNK_BYTES))
        count = max(count, math.ceil(len(todo) / MOST_JOBS))
        return [todo[number::count] for number in range(count)]

    def _task_runner(self) -> TaskRunner[Any]:
        if self._runner is None:
            self._runner = self._stack.enter_context(_make_runner(self.execution))
        return self._runner


@contextmanager
def executor(store: Store, execution: Execution, root: RunRoot) -> Iterator[Executor]:
    """An Executor whose workers stop with the context."""
    made = Executor(store, execution, root)
    try:
        yield made
    finally:
        made.close()


def _make_runner(execution: Execution) -> TaskRunner[Any]:
    workers = execution.workers
    if execution.runner == "local":
        return ThreadPoolTaskRunner(max_workers=workers)
    if execution.runner == "dask":
        from prefect_dask import DaskTaskRunner

        if execution.address:
            return DaskTaskRunner(address=execution.address)
        return DaskTaskRunner(cluster_kwargs={"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None})
    try:
        from prefect_ray import RayTaskRunner
    except ImportError as error:
        raise LlmcoreError("execution.runner: ray needs the extra `ray`; pip install 'llmcore[ray]'") from error
    return RayTaskRunner(address=execution.address, init_kwargs=None if execution.address else {"num_cpus": workers})


def _say_who_holds_it(holder: str) -> None:
    get_run_logger().info("waiting: %s is at this very work already", holder)
