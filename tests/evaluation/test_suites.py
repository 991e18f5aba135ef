from __future__ import annotations

import pytest

from cuvee.errors import UserError
from evaluation.suites import SUITES, expand, suite, weights
from evaluation.tasks import get


def test_every_member_is_a_task() -> None:
    for entry in SUITES.values():
        for task in entry.tasks:
            assert get(task).name == task.partition("@")[0]


def test_weights_average_as_the_paper_does() -> None:
    plain = weights("s3ft")
    assert plain == {name: 0.25 for name in ("mmlu", "truthfulqa_mc2", "hellaswag", "winogrande")}
    grouped = weights("im_18_by_group")
    assert sum(grouped.values()) == pytest.approx(1)
    assert grouped["gsm8k"] == pytest.approx(1 / 12)
    assert grouped["lm_eval:bbh_cot_fewshot"] == pytest.approx(1 / 6)


def test_names_expand_once_and_unknown_ones_are_refused() -> None:
    assert expand(["arc_easy", "builtin"]) == ["arc_easy", "piqa", "sciq", "hellaswag", "winogrande"]
    assert suite(["piqa"]).tasks == ("piqa",)
    assert list(weights(["truthfulqa", "gsm8k/test", "mmlu@5"])) == ["truthfulqa_mc2", "gsm8k", "mmlu"]
    with pytest.raises(UserError, match="s3ft"):
        suite("s3f")
    with pytest.raises(UserError, match="without"):
        suite([])
