"""One runner a key.

A lease is one object: owner, heartbeat, fencing number. Taking it from an owner who has stopped beating raises the
number, so that an owner who was only slow finds out before it publishes. On the same host a dead owner is recognised
at once by process id and start time, so that nobody waits for a time-out after a kill.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from cuvee.errors import CuveeError
from services.objects import ABSENT, Conflict, Objects

BEAT = 10.0
"""Seconds between heartbeats."""
LIFE = 60.0
"""Seconds without a heartbeat after which a lease may be taken."""


class LeaseLost(CuveeError):
    """Another runner took the key while this one worked; its result is not published."""


class Lease:
    """Held until released. `fence` grows with every taking."""

    def __init__(self, objects: Objects, key: str, fence: int, version: str) -> None:
        self.key, self.fence = key, fence
        self._objects, self._version = objects, version
        self._lock = threading.Lock()
        self.lost = False

    def beat(self) -> None:
        """Renew. Sets `lost` when somebody else has it."""
        with self._lock:
            if self.lost:
                return
            try:
                self._version = self._objects.put(_name(self.key), _record(owner(), self.fence), version=self._version)
            except Conflict:
                self.lost = True

    def check(self) -> None:
        """Raises LeaseLost when this runner may not publish."""
        self.beat()
        if self.lost:
            raise LeaseLost(f"{self.key} was taken over by another runner", remedy="run again; its result is reused")

    def release(self) -> None:
        """Free the key. The fencing number stays."""
        with self._lock, contextlib.suppress(Conflict):
            if not self.lost:
                self._objects.put(_name(self.key), _record(None, self.fence), version=self._version)


def acquire(objects: Objects, key: str) -> Lease | None:
    """The lease, or None while a living owner has it."""
    found = objects.get(_name(key))
    fence, version = 0, ABSENT
    if found:
        state = json.loads(found[0])
        if state["owner"] and alive(state):
            return None
        fence, version = int(state["fence"]), found[1]
    try:
        version = objects.put(_name(key), _record(owner(), fence + 1), version=version)
    except Conflict:
        return None
    return Lease(objects, key, fence + 1, version)


def holder(objects: Objects, key: str) -> str:
    """Who has the key now, for messages; empty when nobody has."""
    found = objects.get(_name(key))
    state = json.loads(found[0]) if found else {}
    who = state.get("owner")
    return f"process {who['pid']} on {who['host']}" if who and alive(state) else ""


@contextlib.contextmanager
def beating(lease: Lease, also: Callable[[], None] | None = None) -> Iterator[None]:
    """Beat in a thread while the work runs. `also` is called with each beat (saving work to an object store)."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(BEAT):
            # A network that is away for a moment costs a beat, not the work: LIFE covers several.
            with contextlib.suppress(OSError):
                lease.beat()
                if also and not lease.lost:
                    also()

    thread = threading.Thread(target=run, name=f"lease-{lease.key}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def owner() -> dict[str, Any]:
    """This process: host, pid and start time (pids are used again)."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": process_started(os.getpid())}


def alive(state: dict[str, Any]) -> bool:
    """Whether the owner of a lease's state still works on it."""
    who = state["owner"]
    if who["host"] == socket.gethostname():
        return process_started(who["pid"]) == who["started"]
    return time.time() - state["beat"] < LIFE


def process_started(pid: int) -> float | None:
    """Start time of a process in seconds since the epoch; None when there is none, or only a zombie."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time(), 1)
    except psutil.NoSuchProcess:
        return None


def _name(key: str) -> str:
    return f"leases/{key}.json"


def _record(who: dict[str, Any] | None, fence: int) -> bytes:
    return json.dumps({"owner": who, "fence": fence, "beat": time.time()}).encode()
