"""`gold_loss`: the loss per token of gold answers.

At small model sizes exact match sits at its floor while this moves: it is the sensitive metric for what a model took
up. It penalises self-targeted methods by construction (S3FT leaves the gold text on purpose), so for these it belongs
to retention only, and judged accuracy to the target.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from cuvee import rows as cuvee_rows
from cuvee.protocols import Score, ScoreRequest
from evaluation.items import table
from evaluation.tasks.task import shown

VERSION = "1 chat=on last_turn"


def gold_loss(rows: pa.Table, *, score: Score, task: str = "gold_loss") -> pa.Table:
    """Items of the last assistant turn of each row (`cuvee.rows.SCHEMA`), one task a source: `<task>/<source>`.

    `score` is nats per token, `logprob` their sum, `tokens` the weight: a mean over items is per token, sum of nats
    over sum of tokens. A text longer than the context, or of no tokens, has no score.
    """
    records = {(row["id"], row["target"]): row for row in cuvee_rows.records(rows)}
    requests = [
        ScoreRequest(row_id, messages=row["messages"], draw=target, last_only=True)
        for (row_id, target), row in records.items()
    ]
    scored = {(result.id, result.draw): result for result in score(requests)}
    out: list[dict[str, Any]] = []
    for (row_id, target), row in records.items():
        result = scored.get((row_id, target))
        error = "no score came back"
        if result is not None:
            error = result.error or ("longer than the context" if result.truncated else "")
            error = error or ("" if result.tokens > 0 else "no tokens to score")
        known = result is not None and not error
        out.append(
            {
                "task": f"{task}/{row['source']}",
                "version": VERSION,
                "item": row_id if target == 0 else f"{row_id}:{target}",
                "metric": "loss",
                "score": -result.logprob / result.tokens if known and result else None,
                "prompt": shown(cuvee_rows.prompt_of(row["messages"])),
                "reference": cuvee_rows.answer_of(row["messages"]),
                "logprob": result.logprob if known and result else None,
                "tokens": result.tokens if known and result else None,
                "error": error,
            }
        )
    return table(out)
