"""Handlers of signals that belong to this process, where a library puts its own in their place."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def own_handler(number: signal.Signals, *, or_theirs: bool = False) -> Iterator[None]:
    """Keep the handler of a signal over the block, and let it answer an exit that the library's makes there.

    Ray answers SIGTERM in `ray.init` and the first SIGINT in Ray Train's `fit` by an exit, in place of the caller's
    clean-up, and leaves its handlers behind. For SIGTERM it also has one below Python's, which aborts a process that is
    not gone three seconds later (Ray's pull request 64830); a handler that is set afterwards lies above it.

    `or_theirs`: where this process has none, the library's stays. Only the main thread has handlers; elsewhere nothing
    is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(number)
    try:
        yield
    except SystemExit:
        signal.alarm(0)  # of the abort
        if callable(before):
            before(number, None)
        raise
    finally:
        signal.signal(number, signal.getsignal(number) if or_theirs and not callable(before) else before)
