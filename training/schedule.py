"""The learning rate as a pure function of the step number.

No scheduler object, hence no scheduler state to save and restore: a run that resumes at step t has the rate of step
t. The first step is not wasted: warm-up of w steps gives lr/w, 2 lr/w, ..., lr. After it the rate falls along half a
cosine (arXiv 1608.03983) or a line, towards 0, which the step after the last one would reach.
"""

from __future__ import annotations

import math

from training.settings import TrainConfig


def warmup_steps(config: TrainConfig, steps: int) -> int:
    """A share is rounded up, so that 3% of 10 steps is one step."""
    share = config.warmup < 1
    return min(steps, math.ceil(config.warmup * steps) if share else int(config.warmup))


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Rate of 0-based `step` of `steps`."""
    warm = warmup_steps(config, steps)
    if step < warm:
        return config.lr * (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * done))
    return config.lr * (1 - done) if config.schedule == "linear" else config.lr
