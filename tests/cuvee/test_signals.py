"""A library that takes a signal for itself, as Ray does, does not keep it."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

import pytest

from cuvee.signals import own_handler

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def theirs(number: int, frame: Any) -> None:
    sys.exit(0)


def take(number: signal.Signals, *, raised: bool = False, or_theirs: bool = False) -> None:
    with own_handler(number, or_theirs=or_theirs):
        signal.signal(number, theirs)
        if raised:
            signal.raise_signal(number)


@pytest.fixture(params=SIGNALS)
def number(request: pytest.FixtureRequest) -> Any:
    before = signal.getsignal(request.param)
    yield request.param
    signal.signal(request.param, before)


def test_a_signal_over_the_block_is_answered_by_our_handler(number: signal.Signals) -> None:
    def ended(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(number, ended)
    with pytest.raises(KeyboardInterrupt):
        take(number, raised=True)
    assert signal.getsignal(number) is ended


def test_where_there_was_none_theirs_goes_or_stays(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_DFL)
    take(number)
    assert signal.getsignal(number) is signal.SIG_DFL
    with pytest.raises(SystemExit):
        take(number, raised=True, or_theirs=True)
    assert signal.getsignal(number) is theirs


def test_other_threads_have_no_handlers(number: signal.Signals) -> None:
    passed = []

    def work() -> None:
        with own_handler(number):
            passed.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert passed == [True]
