from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee.errors import CuveeError, DataError
from cuvee.rows import make_table, prompt_hash
from selection.holdout import HoldoutConfig, holdout


def table(prompts: list[str], answers: int = 1, system: str = "") -> pa.Table:
    head = [{"role": "system", "content": system}] if system else []
    return make_table(
        "t",
        [
            {"messages": [*head, {"role": "user", "content": p}, {"role": "assistant", "content": f"answer {a}"}]}
            for p in prompts
            for a in range(answers)
        ],
    )


def prompts_of(t: pa.Table) -> set[str]:
    return {prompt_hash(m) for m in t.column("messages").to_pylist()}


@given(n=st.integers(5, 60), asked=st.integers(1, 5), answers=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_prompts_never_fall_on_both_sides_and_row_order_does_not_matter(
    n: int, asked: int, answers: int, seed: int
) -> None:
    t = table([f"what is {i} plus {i * 7}" for i in range(n)], answers)
    config = HoldoutConfig(amount=f"{asked * answers} rows")
    train, held = holdout(t, config)
    assert held.num_rows == asked * answers
    assert train.num_rows + held.num_rows == t.num_rows
    assert not prompts_of(train) & prompts_of(held)
    order = np.random.default_rng(seed).permutation(t.num_rows)
    _, again = holdout(t.take(pa.array(order)), config)
    assert set(again.column("id").to_pylist()) == set(held.column("id").to_pylist())


def test_a_new_row_does_not_move_the_others() -> None:
    prompts = [f"question number {i} about topic {i * 31 % 17}" for i in range(100)]
    before = prompts_of(holdout(table(prompts), HoldoutConfig(amount="20 rows"))[1])
    after = prompts_of(holdout(table([*prompts, "one more"]), HoldoutConfig(amount="20 rows"))[1])
    assert len(before & after) >= 19


def test_near_duplicates_stay_together() -> None:
    passages = [" ".join(f"word{p}x{i}" for i in range(60)) for p in range(8)]
    t = table([f"{passage} Question: what of {q}?" for passage in passages for q in ("this", "that", "the rest")])
    train, held = holdout(t, HoldoutConfig(amount="6 rows"))
    sides = [{m[0]["content"][:8] for m in side.column("messages").to_pylist()} for side in (train, held)]
    assert held.num_rows == 6
    assert not sides[0] & sides[1]


def test_a_long_common_system_text_does_not_make_prompts_alike() -> None:
    t = table([f"what is {i} plus {i * 7}" for i in range(20)], system="be helpful and honest " * 60)
    assert holdout(t, HoldoutConfig(amount="5 rows"))[1].num_rows == 5


def test_the_recipe_may_write_the_amount_alone() -> None:
    assert HoldoutConfig.model_validate("1/4") == HoldoutConfig(amount="1/4")
    assert holdout(table([f"p {i}" for i in range(20)]), HoldoutConfig(amount="1/4"))[1].num_rows == 5


def test_nothing_asked_nothing_held() -> None:
    train, held = holdout(table(["a", "b"]), HoldoutConfig(amount="none"))
    assert (train.num_rows, held.num_rows) == (2, 0)


def test_one_prompt_cannot_be_split() -> None:
    with pytest.raises(DataError, match="smallest group of prompts that belong together has 4"):
        holdout(table(["the only prompt"], answers=4), HoldoutConfig(amount="2 rows"))


def test_a_bare_number_is_refused() -> None:
    with pytest.raises((CuveeError, ValueError), match="not an amount"):
        HoldoutConfig(amount=20)
