"""One function a step. Importing this package registers all of them; the science is imported when a step runs."""

from services.steps import compose, data, evaluate, iterate, model, respond, select, train
from services.steps.base import STEPS, Context, Step, get, source_digest

__all__ = [
    "STEPS",
    "Context",
    "Step",
    "compose",
    "data",
    "evaluate",
    "get",
    "iterate",
    "model",
    "respond",
    "select",
    "source_digest",
    "train",
]
