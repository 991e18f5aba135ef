"""What a plan says of models behind an API, and of judges, before anything is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cuvee.errors import UserError
from services.arms import expand
from services.costs import RATING_PROMPT, VERDICT, WORDING, lines
from services.figures import CHARACTERS_PER_TOKEN
from services.plan import Plan, make_plan
from services.plan_record import plan_record
from services.recipe import loads
from services.run import check_judges, read_pools
from services.store import Store

RECIPE = """
version: 1
name: asked
models:
  tiny: {id: TINY}
  dear: {api: openai/gpt-4, price: {prompt: 30, completion: 60}, requests_per_minute: 10}
  own: {api: house/model, base_url: "http://127.0.0.1:9/v1"}
data:
  qa:
    from: POOL
    do:
      - holdout: {amount: 4 rows, near: null}
      - respond: {model: dear, policy: s3ft, judge: $judge, decoding: {max_new_tokens: 50}}
      - score: {grade: {deita: {model: own}}}
let: {judge: {tiers: [text, {llm: own}]}}
train: {model: tiny}
evaluate: {accuracy: {qa: {llm: dear}}, decoding: {max_new_tokens: 20}, at: base}
"""


@pytest.fixture
def text(tmp_path: Path, tiny_model: Path) -> str:
    rows = [json.dumps({"prompt": f"{i:02} is?", "completion": "it is so"}) for i in range(24)]  # 14 characters
    (tmp_path / "pool.jsonl").write_text("\n".join(rows))
    return RECIPE.replace("TINY", str(tiny_model)).replace("POOL", str(tmp_path / "pool.jsonl"))


def planned(text: str, tmp_path: Path, *settings: str) -> tuple[Plan, Store]:
    recipe, store = loads(text, overrides=settings), Store(str(tmp_path / "store"))
    plan = make_plan(recipe, expand(recipe), store)
    read_pools(plan, store)
    return plan, store


def test_what_an_api_is_asked_and_costs(text: str, tmp_path: Path) -> None:
    found = plan_record(*planned(text, tmp_path))["api"]
    each = 14 / CHARACTERS_PER_TOKEN
    by_step = {(call["step"], call["model"]): call for call in found}
    # 24 rows less 4 held out: 20 own answers and at most 20 paraphrases, whose prompt has more around it.
    asked = by_step["qa · respond", "openai/gpt-4"]
    assert (asked["requests"], asked["completion_tokens"]) == (40, 40 * 50)
    assert asked["prompt_tokens"] == round(40 * (each + WORDING))
    assert asked["cost"] == pytest.approx((asked["prompt_tokens"] * 30 + 2000 * 60) / 1e6)
    assert asked["minutes"] == 4
    # Both candidates of each row, in both orders, when the first tier decides none.
    judged = by_step["qa · respond", "house/model"]
    assert (judged["requests"], judged["cost"], judged["completion_tokens"]) == (80, None, 80 * VERDICT)
    assert judged["prompt_tokens"] == round(80 * (each + 50 + WORDING))
    # Quality and complexity of each row are two grades.
    assert by_step["qa · score", "house/model"]["prompt_tokens"] == round(40 * (each + RATING_PROMPT))
    held = by_step["base · accuracy.qa", "openai/gpt-4"]
    assert (held["requests"], held["prompt_tokens"]) == (4 * 2, round(8 * (each + 20 + WORDING)))
    said = lines(found)
    assert any("no price in the recipe" in line for line in said)
    assert said[-1] == f"api: {asked['cost'] + held['cost']:,.2f} USD in all, at most"


def test_costs_wait_for_rows_that_nobody_has_counted(text: str, tmp_path: Path) -> None:
    recipe = loads(text)
    store = Store(str(tmp_path / "empty"))
    found = plan_record(make_plan(recipe, expand(recipe), store), store)["api"]
    asked = next(call for call in found if call["step"] == "qa · respond")
    assert asked["requests"] is None
    assert "known after" in asked["certainty"]
    assert "known after" in "".join(lines(found))


def test_a_judge_that_cannot_decide_the_rows_is_refused(text: str, tmp_path: Path) -> None:
    for judge, words in (("code", "needs tests, and 0 of 24"), ("numeric", "needs numbers, and 0 of 24")):
        with pytest.raises(UserError, match=words):
            check_judges(*planned(text, tmp_path, f"let.judge={judge}"))
    check_judges(*planned(text, tmp_path))


def test_what_decides_targets_is_in_the_key(text: str, tmp_path: Path) -> None:
    def key(*settings: str) -> str:
        plan, _ = planned(text, tmp_path, *settings)
        return next(n.key for n in plan.arms[0].tables["qa"].nodes if n.step == "respond")

    (tmp_path / "p.jinja").write_text("{# version: 1 #}{% block gold %}It is: {{ gold }}{% endblock %}")
    worded = ("data.qa.do=[{respond: {policy: gold, prompts: " + str(tmp_path / "p.jinja") + "}}]", "evaluate=~")
    first = key(*worded)
    assert key(*worded) == first
    (tmp_path / "p.jinja").write_text("{# version: 1 #}{% block gold %}It is, {{ gold }}{% endblock %}")
    assert key(*worded) != first  # the gold is worded by it, without any model
    (tmp_path / "j.jinja").write_text("{# version: 1 #}{% block user %}{{ first }} {{ second }}{% endblock %}")
    judge = "let.judge={llm: {model: own, prompt: " + str(tmp_path / "j.jinja") + "}}"
    first = key(judge)
    (tmp_path / "j.jinja").write_text("{# version: 1 #}{% block user %}{{ second }} {{ first }}{% endblock %}")
    assert key(judge) != first
