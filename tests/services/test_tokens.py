"""Ids of plain text, against lm-evaluation-harness."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from services.tokens import encode_pair, likeliest


def test_pairs_are_cut_as_the_harness_cuts_them(tokenizer: Any) -> None:
    from lm_eval.api.model import TemplateLM

    class Plain:
        backend = "causal"

        def tok_encode(self, text: str, **_: Any) -> list[int]:
            return tokenizer.encode(text)

    for context, continuation in [("Ana has", " 3"), ("Ana has  ", "3"), ("x\n", "y"), ("The answer is", "8")]:
        expected = TemplateLM._encode_pair(Plain(), context, continuation)
        assert encode_pair(tokenizer, context, continuation) == expected
    assert encode_pair(tokenizer, "", "8") == ([tokenizer.bos_token_id], tokenizer.encode("8"))


def test_tokens_that_read_alike_are_added() -> None:
    def token(logprob: float, text: str) -> Any:
        return SimpleNamespace(logprob=logprob, decoded_token=text)

    row = {1: token(math.log(0.5), "a"), 2: token(math.log(0.25), "a"), 3: token(-math.inf, "b")}
    assert likeliest(row, 3) == pytest.approx({"a": math.log(0.75)})
    assert likeliest(row, 1) == pytest.approx({"a": math.log(0.5)})
