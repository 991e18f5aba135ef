"""The seams to Ray Tune: a searcher that asks us, a scheduler that is told what was, and silence."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuvee.environment import defaults
from services.search import Asha
from services.sweep.records import Record

RUNGS = 8
"""Rungs of ASHA; those beyond the longest arm are never reached."""
_ENVIRONMENT = {
    # Results go to the store and to MLflow; Tune's own loggers would write each of them three times more.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # What a killed search needs is in its records, so that Tune's own snapshots serve nothing.
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # The last report of an arm has no signal: whatever the scheduler would say of it, the arm is done.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "64",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@contextmanager
def quiet() -> Iterator[None]:
    """Tune's settings for the length of the block; what the user has set stays."""
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    with defaults(_ENVIRONMENT):
        yield


def searcher(
    following: Callable[[], int | None],
    reported: Callable[[int, int, int, float], None],
    ended: Callable[[int, Mapping[str, Any], bool], None],
) -> Any:
    """Tune's searcher over arms that are numbered elsewhere."""
    from ray.tune.search import Searcher

    class Arms(Searcher):
        def __init__(self) -> None:
            super().__init__()
            self._following: Any = following
            self._reported: Any = reported
            self._ended: Any = ended
            self._numbers: dict[str, int] = {}
            self._lock = threading.Lock()

        # Tune keeps a copy of its searcher; this one is made again from the records.
        def __reduce__(self) -> Any:
            return Searcher, ()

        def suggest(self, trial_id: str) -> Any:
            with self._lock:
                number = self._following()
                if number is None:
                    return Searcher.FINISHED
                self._numbers[trial_id] = number
                return {"number": number}

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            if "signal" in result:
                reported(
                    self._numbers[trial_id], int(result["step"]), int(result["steps"] or 0), float(result["signal"])
                )

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            if result and not result.get("final"):
                self.on_trial_result(trial_id, result)  # the report at which it was stopped comes here alone
            self._ended(self._numbers[trial_id], result or {}, error)

        def save(self, checkpoint_path: str) -> None:
            Path(checkpoint_path).touch()

        def restore(self, checkpoint_path: str) -> None:
            return

    return Arms()


@dataclass(frozen=True)
class _Past:
    """A trial of an earlier command, as far as a scheduler looks at trials."""

    trial_id: str


def asha(settings: Asha, past: Iterable[Record]) -> Any:
    """Tune's ASHA on the signal, which knows the reports of arms that are over."""
    from ray.tune.schedulers import ASHAScheduler

    scheduler = ASHAScheduler(
        time_attr="step",
        metric="signal",
        mode="min",
        grace_period=settings.grace,
        max_t=int(settings.grace * settings.factor**RUNGS) + 1,
        reduction_factor=settings.factor,
        stop_last_trials=False,
    )
    for record in past:
        if record.over and record.reports:
            trial: Any = _Past(f"past-{record.number}")
            controller: Any = None
            scheduler.on_trial_add(controller, trial)
            for step, signal in record.reports:
                scheduler.on_trial_result(controller, trial, {"step": step, "signal": signal})
    return scheduler
