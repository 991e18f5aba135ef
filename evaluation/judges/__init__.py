"""Judges: does a prediction say the same as its reference?

One registry, used when targets are chosen, when models are evaluated, and by `cuvee judge`. A judge answers
`equivalent`, `different` or `unsure`, with a reason and what it looked at. It never raises on content: whatever stops
it from deciding is `unsure`, is counted apart, and is accepted nowhere.
"""

from __future__ import annotations

from evaluation.judges import choice, code, llm, numeric, reward, text, tiers  # noqa: F401 - they register themselves
from evaluation.judges.base import JUDGES, JudgeConfig, Kind, Parts, Reward, build, fits

__all__ = ["JUDGES", "JudgeConfig", "Kind", "Parts", "Reward", "build", "fits"]
