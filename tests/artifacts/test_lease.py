"""One holder at a time: containers that share a host name, clocks that jump, a store that is away."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from llmcore.artifacts import lease, outage, processes
from llmcore.artifacts.epochs import Epochs
from llmcore.artifacts.store import Store, open_store
from llmcore.errors import LlmcoreError
from tests import s3_server
from tests.delaying_proxy import Proxy, proxy
from tests.prefect_server import wait_for

HOLD = """
import sys
from llmcore.artifacts import lease
from llmcore.artifacts.store import open_store
held = lease.take(open_store(sys.argv[1]), "k", lambda: True, print)
print("held", flush=True)
sys.stdin.read()
"""


def take(store: Store, still_wanted: Callable[[], bool] = lambda: True) -> lease.Lease | None:
    return lease.take(store, "k", still_wanted, lambda holder: None)


def took(store: Store) -> lease.Lease:
    held = take(store)
    assert held is not None
    return held


def looks(number: int) -> Callable[[], bool]:
    """True so many times."""
    left = iter(range(number))
    return lambda: next(left, None) is not None


def row_of(store: Store) -> Epochs:
    return Epochs(store, "runs/k/lease")


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/store")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(lease, "RENEW_EVERY_SECONDS", 0.1)


@pytest.fixture
def away(moto_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Store, Proxy]]:
    """A store on S3 whose server the test can take away."""
    port = int(moto_server["AWS_ENDPOINT_URL"].rsplit(":", 1)[1])
    with s3_server.in_environment(moto_server):
        uri = f"{s3_server.make_bucket(f'lease-{uuid.uuid4().hex[:8]}')}/x"
        with proxy(port) as far, s3_server.in_environment({"AWS_ENDPOINT_URL": f"http://127.0.0.1:{far.port}"}):
            yield open_store(uri), far


def test_a_lease_that_another_took_over_is_lost(store: Store) -> None:
    held = took(store)
    held.check()
    assert take(store, looks(0)) is None
    store.backend.create("runs/k/lease/000000009", b'{"owner": "another"}')
    with pytest.raises(lease.LeaseLostError, match="another process took the work over"):
        held.check()
    held.give_back()
    assert [entry.name for entry in store.backend.entries("runs/k/lease/")][-1] == "runs/k/lease/000000009"


def test_a_lease_given_back_is_free_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SECONDS_TO_LIVE", 1e6)
    for number in range(3):
        held = took(store)
        newest = row_of(store).newest()
        assert newest is not None and newest.number == 2 * number + 1
        held.give_back()
        with pytest.raises(lease.LeaseLostError):
            held.check()
    assert len(list(store.backend.entries("runs/k/lease/"))) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="a process namespace needs root")
def test_a_live_holder_in_another_container_with_our_host_name_keeps_its_lease(folder: Store, quick: None) -> None:
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", HOLD, folder.uri]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stderr is not None
        if holder.stdout.readline() != "held\n":
            pytest.skip(f"no process namespace can be made here: {holder.stderr.read().strip()}")
        before = row_of(folder).newest()
        assert before is not None and before.record["pid"] != holder.pid
        assert take(folder, looks(20)) is None
    finally:
        holder.communicate("")


def test_a_holder_of_another_boot_is_not_looked_up_among_our_processes(folder: Store, quick: None) -> None:
    gone = {"owner": "x", **processes.identity(), "pid": 1 << 30}
    row_of(folder).create(1, {**gone, "machine": "another boot:1"})
    assert take(folder, looks(10)) is None
    row_of(folder).create(2, gone)
    took(folder).give_back()


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_a_clock_that_jumps_takes_no_lease_from_a_live_holder(folder: Store, quick: None, seconds: int) -> None:
    row_of(folder).create(1, {"owner": "x", "host": "far away"})
    newest = row_of(folder).newest()
    assert newest is not None
    file = folder.backend.local(newest.entry.name)
    assert file is not None
    os.utime(file, (time.time() + seconds, time.time() + seconds))
    assert take(folder, looks(10)) is None


def test_a_holder_that_renews_is_waited_for_and_one_that_stands_still_is_not(
    folder: Store, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SECONDS_TO_LIVE", 1.0)
    row = row_of(folder)
    row.create(1, {"owner": "x", "host": "far away"})
    renewals = 12
    stopped = threading.Event()

    def renew() -> None:
        for number in range(2, renewals + 2):
            time.sleep(0.2)  # the pace of a holder, not a wait
            row.create(number, {"owner": "x", "host": "far away"})
        stopped.set()

    threading.Thread(target=renew).start()
    held = took(folder)
    assert stopped.is_set()
    held.check()
    held.give_back()


def test_a_clock_that_is_set_does_not_make_a_live_process_a_dead_one(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = processes.identity()
    assert not processes.is_dead(mine)
    assert processes.is_dead(mine | {"process_started": mine["process_started"] - 1})
    # what psutil makes of the start moves with the clock
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: 1.0)
    assert not processes.is_dead(mine)


def test_who_only_asks_is_told_a_holder_until_it_was_silent_for_long(folder: Store) -> None:
    assert lease.holder(folder, "k") is None
    row_of(folder).create(1, {"owner": "x", "host": "far away", "pid": 7})
    assert lease.holder(folder, "k") == "process 7 on far away"
    newest = row_of(folder).newest()
    assert newest is not None
    file = folder.backend.local(newest.entry.name)
    assert file is not None
    os.utime(file, (time.time() - lease.SILENT_SECONDS - 9, time.time() - lease.SILENT_SECONDS - 9))
    assert lease.holder(folder, "k") is None
    assert lease.holder(folder, "k", lease.Watch()) == "process 7 on far away"


def test_what_the_waiter_slept_through_was_not_watched(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    row = row_of(folder)
    row.create(1, {"owner": "x"})
    newest = row.newest()
    assert newest is not None
    watch = lease.Watch()
    assert watch.look(newest) == 0
    now += 3600
    assert watch.look(newest) == lease.LONGEST_LOOK_SECONDS
    now += 1
    assert watch.look(newest) == lease.LONGEST_LOOK_SECONDS + 1


def test_a_holder_keeps_its_lease_through_an_outage(
    away: tuple[Store, Proxy], quick: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outage, "OUTAGE_SECONDS", 0.2)
    store, between = away
    held = took(store)
    between.away = True
    wait_for(lambda: "not renewed" in caplog.text, "a beat that the outage swallowed")
    held.check_quickly()
    between.away = False
    held.check()
    held.give_back()
    took(store).give_back()


def test_a_lease_lost_during_an_outage_is_found_lost_before_the_commit(
    away: tuple[Store, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "OUTAGE_SECONDS", 0.2)
    store, between = away
    held = took(store)
    between.away = True
    with pytest.raises(LlmcoreError, match="run again"):
        held.check()
    held.check_quickly()
    between.away = False
    row_of(store).create(9, {"owner": "another"})
    with pytest.raises(lease.LeaseLostError):
        held.check()
    held.give_back()


def test_giving_back_while_the_store_is_away_neither_raises_nor_hangs(
    away: tuple[Store, Proxy], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lease, "GIVE_BACK_SECONDS", 0.5)
    store, between = away
    held = took(store)
    with caplog.at_level(logging.WARNING), pytest.raises(ZeroDivisionError):
        try:
            between.away = True
            raise ZeroDivisionError
        finally:
            held.give_back()
    assert "not given back" in caplog.text and "others wait 60 s" in caplog.text
    between.away = False
