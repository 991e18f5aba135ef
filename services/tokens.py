"""Token ids of plain text, and what an engine says of single tokens.

Conversations go through `cuvee.chat`; here is text without roles, as benchmarks give it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def encode(tokenizer: Any, text: str) -> list[int]:
    """Ids of plain text, with the start token where the tokenizer adds one, but not twice."""
    start = tokenizer.bos_token
    return [int(i) for i in tokenizer.encode(text, add_special_tokens=not (start and text.startswith(start)))]


def encode_pair(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Ids of a context and of what follows it, as lm-evaluation-harness cuts them.

    Spaces at the context's end belong to the continuation, and the continuation's tokens are what encoding both has
    more than encoding the context. An empty context is the start token, or the end token where there is none.
    """
    if not context:
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        ids = [int(i) for i in tokenizer.encode(continuation, add_special_tokens=False)]
        return (ids[:1], ids[1:]) if ids and ids[0] == start else ([int(start)], ids)
    kept = context.rstrip()
    whole = encode(tokenizer, context + continuation)
    before = encode(tokenizer, kept)
    return before, whole[len(before) :]


def likeliest(position: Mapping[int, Any], limit: int) -> dict[str, float]:
    """Log-probability by text of the `limit` likeliest tokens; those that read alike are added up."""
    found: dict[str, float] = {}
    for token in sorted(position.values(), key=lambda token: -token.logprob)[:limit]:
        if token.logprob > -math.inf:
            text = str(token.decoded_token)
            found[text] = math.log(math.exp(found.get(text, -math.inf)) + math.exp(token.logprob))
    return found
