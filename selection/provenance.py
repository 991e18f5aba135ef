"""What is recorded of each target, and what a source's targets are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

PROVENANCE = pa.schema(
    [
        ("id", pa.string()),
        ("target", pa.int32()),
        ("source", pa.string()),
        ("own_answer", pa.string()),
        ("own_finish", pa.string()),
        ("own_verdict", pa.string()),
        ("own_reason", pa.string()),
        ("own_draw", pa.int32()),
        ("own_draws", pa.int32()),
        ("own_accepted", pa.int32()),
        ("own_score", pa.float64()),
        ("paraphrase", pa.string()),
        ("paraphrase_finish", pa.string()),
        ("paraphrase_verdict", pa.string()),
        ("paraphrase_reason", pa.string()),
        ("chosen", pa.string()),
        ("text", pa.string()),
        ("judge", pa.string()),
        ("judge_version", pa.string()),
        ("prompts", pa.string()),
        ("decoding", pa.string()),
        ("model", pa.string()),
        *((f"{name}_{which}", kind) for which in ("own", "paraphrase", "gold")
          for name, kind in (("logprob", pa.float64()), ("tokens", pa.int32()))),
        ("error", pa.string()),
    ]
)  # fmt: skip
"""One row a target (and one for a row that `model_only` dropped: `chosen` and `text` are null there). Verdicts are the
judge's words, or `rejected` (empty, truncated, looping, leaking: no judge was asked) or `failed` (no text came)."""


def composition(responses: pa.Table) -> pa.Table:
    """Counts and shares of the sources of targets for each `source` and for `all` (the paper's Table 3).

    `unsure`, `rejected` and `failed` count candidates, own and paraphrased, that ended so.
    """
    records = responses.select(["source", "chosen", "own_verdict", "paraphrase_verdict"]).to_pylist()
    sources = sorted({record["source"] for record in records})
    return pa.Table.from_pylist(
        [_composed(name, [r for r in records if name in ("all", r["source"])]) for name in [*sources, "all"]],
        schema=pa.schema(
            [("source", pa.string()), ("rows", pa.int64())]
            + [(name, pa.int64()) for name in ("model", "paraphrase", "gold", "dropped")]
            + [(f"{name}_share", pa.float64()) for name in ("model", "paraphrase", "gold")]
            + [(name, pa.int64()) for name in ("unsure", "rejected", "failed")]
        ),
    )


def _composed(name: str, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    chosen = [record["chosen"] for record in records]
    counts: dict[str, Any] = {source: chosen.count(source) for source in ("model", "paraphrase", "gold")}
    shares = {f"{source}_share": count / max(len(chosen), 1) for source, count in counts.items()}
    ends = [record[column] for record in records for column in ("own_verdict", "paraphrase_verdict")]
    failures = {word: ends.count(word) for word in ("unsure", "rejected", "failed")}
    return {"source": name, "rows": len(chosen), **counts, "dropped": chosen.count(None), **shares, **failures}
