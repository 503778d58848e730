"""A stage, or a chunk of its shards, as a Prefect task.

The store decides *cached or run*; Prefect shows it: a task that finds its artifact ends in a `Completed` state named
`Cached`. What passes between tasks is a small reference. Prefect's own result cache stays off: one source of truth.
"""

from __future__ import annotations

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
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner
from prefect.utilities.annotations import quote

from llmcore.artifacts import runner
from llmcore.artifacts.manifest import ArtifactRef
from llmcore.artifacts.recipe import Recipe, Step, resolve
from llmcore.artifacts.store import Store, open_store
from llmcore.errors import LlmcoreError
from llmcore.planning.config import Execution
from tasks.progress import ProgressBar

# 16 per-shard stages × 8 chunks keeps a whole run under 200 task runs, which Prefect's server takes with ease
MOST_CHUNKS = 8
POOL_BYTES = 16 << 20  # compressed; less is done before a worker process has imported what it needs


@task(cache_policy=NO_CACHE, persist_result=False)
def stage(
    store_uri: str, step: Step, done: Mapping[str, ArtifactRef], computed: int | None
) -> ArtifactRef | State[Any]:
    """Find the artifact of a step, or make it: run a global stage, or gather the shards that chunks have computed.

    computed: how many shards the chunks before this task computed; None if the artifact was there already.
    """
    store = open_store(store_uri)
    recipe = resolve(store, step, done)
    found = runner.find(store, recipe)
    if found is not None and computed is None:
        return Completed(name="Cached", message=f"found {found.stage}/{found.key[:12]}", data=found)
    if step.stage.kind == "per_shard":
        return runner.commit_shards(store, recipe, flow_run.id, datetime.now(UTC), computed)
    with ProgressBar(step.name) as bar:
        return runner.run_global(store, recipe, bar.report, flow_run.id, waiting=_say_who_holds_it)


@task(cache_policy=NO_CACHE, persist_result=False)
def shards(store_uri: str, recipe: bytes, names: Sequence[str], workers: int) -> int:
    """Compute a chunk of a stage's shards; returns how many.

    recipe: our own Recipe, pickled, because task runners look into (and Dask rebuilds) what they can look into.
    """
    runner.run_shards(open_store(store_uri), pickle.loads(recipe), names, workers)
    return len(names)


class Executor:
    """Runs steps one after another; the shards of a step over the configured Prefect task runner."""

    def __init__(self, store: Store, execution: Execution) -> None:
        self.store = store
        self.execution = execution
        self._stack = ExitStack()
        self._runner: TaskRunner[Any] | None = None

    def run(self, step: Step, done: Mapping[str, ArtifactRef], force: bool = False) -> ArtifactRef:
        """Make or find one step's artifact. LlmcoreError if its work failed."""
        recipe = resolve(self.store, step, done)
        if not force:
            return self._run(step, recipe, done)
        restore = runner.forget(self.store, recipe)
        try:
            return self._run(step, recipe, done)
        except BaseException:
            restore()
            raise

    def close(self) -> None:
        self._stack.close()
        runner.stop_workers()

    def _run(self, step: Step, recipe: Recipe, done: Mapping[str, ArtifactRef]) -> ArtifactRef:
        computed = None
        if step.stage.kind == "per_shard" and runner.find(self.store, recipe) is None:
            computed = self._run_shards(recipe)
        state = stage.with_options(name=step.name)(
            self.store.uri, quote(step), quote(done), computed, return_state=True
        )
        ref = state.result()
        if not isinstance(ref, ArtifactRef):
            raise LlmcoreError(f"{step.name}: its task ended without an artifact; see the log above")
        return ref

    def _run_shards(self, recipe: Recipe) -> int:
        todo = runner.shards_to_do(self.store, recipe)
        if not todo:
            return 0
        count = min(MOST_CHUNKS, len(todo))
        chunks = [todo[number::count] for number in range(count)]
        # threads share one process pool in this process where that is worth its start; elsewhere a worker is a process
        work = sum(recipe.files[recipe.stage.reads[0]][name].bytes for name in todo)
        pooled = self.execution.runner == "threads" and len(todo) > 1 and work >= POOL_BYTES
        inside = self.execution.workers if pooled else 1
        chunk_task = shards.with_options(name=f"{recipe.step.name} shards")
        sealed = pickle.dumps(recipe)
        futures = [
            self._task_runner().submit(
                chunk_task,
                parameters={"store_uri": self.store.uri, "recipe": sealed, "names": chunk, "workers": inside},
            )
            for chunk in chunks
        ]
        failed = None
        for future in futures:
            future.wait()
            try:
                future.result()
            except Exception as error:
                failed = failed or error
        if failed is not None:
            raise failed
        return len(todo)

    def _task_runner(self) -> TaskRunner[Any]:
        if self._runner is None:
            self._runner = self._stack.enter_context(_make_runner(self.execution))
        return self._runner


@contextmanager
def executor(store: Store, execution: Execution) -> Iterator[Executor]:
    """An Executor whose workers stop with the context."""
    made = Executor(store, execution)
    try:
        yield made
    finally:
        made.close()


def _make_runner(execution: Execution) -> TaskRunner[Any]:
    workers = execution.workers
    if execution.runner == "threads":
        return ThreadPoolTaskRunner(max_workers=workers)
    if execution.runner == "processes":
        return ProcessPoolTaskRunner(max_workers=workers)
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
