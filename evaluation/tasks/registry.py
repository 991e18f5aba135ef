"""The names of tasks. Users add theirs by an entry point of the group `cuvee.task`."""

from __future__ import annotations

from cuvee.registry import Registry
from evaluation.tasks.task import Task

TASKS: Registry[Task] = Registry("task")


def register(task: Task) -> Task:
    return TASKS.register(task.name)(task)
