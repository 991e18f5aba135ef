"""Every weight of a conversation by hand, and relations between the presets over random conversations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cuvee import rows
from cuvee.chat import ASSISTANT, ROLE_NAMES, Chat
from cuvee.tokens import tokenise
from tests.tiny import tiny_tokenizer
from training.objective import OBJECTIVES, Objective, token_weights, trained_share

# A system turn, then two rounds; the letters are template and the three roles, in the order of ROLE_NAMES.
CODES = np.array(["tsua".index(letter) for letter in "ttstttuutttaatttutttaaat"])
TURNS = np.array([-1, -1, 0, -1, -1, -1, 1, 1, -1, -1, -1, 2, 2, -1, -1, -1, 3, -1, -1, -1, 4, 4, 4, -1])


def weights(value: Any, **more: Any) -> list[float]:
    objective = Objective.parse(value)
    return token_weights(objective, source="x", roles=CODES, turns=TURNS, **more).tolist()


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("sft", "0 0 0 0  0 0 0 0 0  0 0 1 1 0  0 0 0 0  0 0 1 1 1 0"),
        ("im", "0 0 1 0  0 0 1 1 0  0 0 1 1 0  0 0 1 0  0 0 1 1 1 0"),
        ("im_released", "0 0 1 1  1 1 1 1 1  1 1 1 1 1  1 1 1 1  1 1 1 1 1 1"),
        ("all", "1 1 1 1  1 1 1 1 1  1 1 1 1 1  1 1 1 1  1 1 1 1 1 1"),
        ({"preset": "sft", "turns": "last"}, "0 0 0 0  0 0 0 0 0  0 0 0 0 0  0 0 0 0  0 0 1 1 1 0"),
        ({"preset": "im", "turns": "last"}, "0 0 1 0  0 0 1 1 0  0 0 0 0 0  0 0 1 0  0 0 1 1 1 0"),
        (
            {"preset": "wit", "prompt_weight": 0.25, "response_weight": 0.5},
            "0 0 .25 0  0 0 .25 .25 0  0 0 .5 .5 0  0 0 .25 0  0 0 .5 .5 .5 0",
        ),
        (
            {"preset": "im", "weights": {"system": 0, "template": 0.5}},
            ".5 .5 0 .5  .5 .5 1 1 .5  .5 .5 1 1 .5  .5 .5 1 .5  .5 .5 1 1 1 .5",
        ),
        ({"by_source": {"x": "im", "y": "all"}}, "0 0 1 0  0 0 1 1 0  0 0 1 1 0  0 0 1 0  0 0 1 1 1 0"),
    ],
)
def test_every_weight_of_a_conversation(objective: Any, expected: str) -> None:
    assert weights(objective) == [float(w) for w in expected.split()]


def test_message_and_row_weights_multiply() -> None:
    scale = np.where(TURNS == 2, 0, 1).astype(np.float32)
    expected = np.array(weights("sft")) * scale * 0.5
    assert weights("sft", scale=scale, weight=0.5) == expected.tolist()


ROLE_ARRAYS = st.lists(st.integers(0, 4), min_size=1, max_size=30).map(np.array)


@given(roles=ROLE_ARRAYS, data=st.data())
def test_relations_between_presets(roles: np.ndarray, data: st.DataObject) -> None:
    turns = np.where(roles > 0, np.cumsum(np.diff(roles, prepend=0) != 0), -1)

    def of(value: Any) -> np.ndarray:
        return token_weights(Objective.parse(value), source="x", roles=roles, turns=turns)

    trained = {name: of(name) > 0 for name in ("sft", "im", "im_released", "all")}
    for smaller, larger in (("sft", "im"), ("im", "im_released"), ("im_released", "all")):
        assert (trained[smaller] <= trained[larger]).all()
    assert (trained["sft"] == (roles == ASSISTANT)).all()
    assert (of({"preset": "wit", "prompt_weight": 0, "response_weight": 1}) == of("sft")).all()
    assert (of({"preset": "wit", "prompt_weight": 1, "response_weight": 1}) == of("im")).all()
    prompt = data.draw(st.floats(0, 1, width=32))
    mixed = (1 - prompt) * of("sft") + prompt * of("im")
    assert of({"preset": "wit", "prompt_weight": prompt, "response_weight": 1}) == pytest.approx(mixed, abs=1e-6)
    table = {"template": 0, "system": 1, "user": 1, "assistant": 1, "tool": 1}
    assert (of({"preset": "all", "weights": table}) == of("im")).all()
    last = of({"turns": "last"})
    assert last.sum() == (turns == turns[roles == ASSISTANT].max()).sum() if trained["sft"].any() else last.sum() == 0


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("imm", "unknown preset"),
        ({"weights": {"usr": 1}}, "no role"),
        ({"weights": {"user": 1.5}}, "not between"),
        ({"preset": "im", "prompt_weight": 0.1}, "belong to wit"),
        ({"by_source": {"a": {"neftune": 5}}}, "may change the table"),
        ({"by_source": {"a": {"normalise": "row"}}}, "may change the table"),
        ({"smooth": 0.1}, "smoothing"),
    ],
)
def test_what_makes_no_sense_is_refused(value: Any, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Objective.parse(value)


def test_a_dumped_objective_reads_back() -> None:
    objective = Objective.parse({"preset": "im", "by_source": {"math": "sft"}, "kl": {"weight": 0.1}, "neftune": 5})
    assert Objective.parse(objective.model_dump(mode="json")) == objective
    assert Objective.parse(None) == Objective.parse("sft") == Objective.parse(Objective())


def test_a_preset_of_ones_own() -> None:
    @OBJECTIVES.register("user_only_for_test")
    def _(objective: Objective, roles: np.ndarray) -> np.ndarray:
        return (roles == ROLE_NAMES.index("user")).astype(np.float32)

    assert sum(weights("user_only_for_test")) == 3


def conversation(*texts: str) -> dict[str, Any]:
    names = ("user", "assistant")
    return {"messages": [{"role": names[i % 2], "content": text} for i, text in enumerate(texts)]}


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(st.text("abc ", min_size=1).filter(str.strip), min_size=2, max_size=6))
def test_shares_add_up_to_a_plain_count(texts: list[str]) -> None:
    chat = Chat(tiny_tokenizer())
    texts = texts[: len(texts) // 2 * 2]
    tokens, _ = tokenise(rows.make_table("s", [conversation(*texts), conversation("a", "b")]), chat)
    share = trained_share(tokens, Objective.parse("im"), max_len=12).to_pylist()
    plain = [(r, i) for row in tokens.to_pylist() for i, r in enumerate(row["roles"][:12])]
    for entry in share:
        code = ROLE_NAMES.index(entry["role"])
        assert entry["tokens"] == sum(r == code for r, _ in plain)
        assert entry["trained"] == sum(r == code and r > 0 and i > 0 for r, i in plain)
        assert entry["weight"] == entry["trained"]
    assert sum(entry["tokens"] for entry in share) == len(plain)
