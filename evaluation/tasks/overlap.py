"""`bleu`: greedy answers to training prompts compared with the targets that were trained on.

Instruction Modelling (arXiv 2405.14394, Table 2) reads it as memorisation: the higher, the more of the training text
comes back. Sentence BLEU per item (sacrebleu, up to 4-grams, exponential smoothing), so that models can be compared in
pairs; output length goes beside it.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from cuvee import rows as cuvee_rows
from cuvee.protocols import Decoding, Generate
from evaluation.items import table
from evaluation.tasks.task import collect, request, shown

VERSION = "1 chat=on last_turn"


def bleu(rows: pa.Table, *, generate: Generate, decoding: Decoding, task: str = "bleu") -> pa.Table:
    """Items of the last turn of each row, one task a source; metrics `bleu` (0 to 1) and `length` (tokens)."""
    from sacrebleu.metrics.bleu import BLEU

    scorer = BLEU(effective_order=True)
    records = {(row["id"], row["target"]): row for row in cuvee_rows.records(rows)}
    asked = {
        row_id: request(task, row_id, cuvee_rows.prompt_of(row["messages"])) for (row_id, _), row in records.items()
    }
    answers = collect(generate, list(asked.values()), decoding)
    out: list[dict[str, Any]] = []
    for (row_id, target), row in records.items():
        answer, reference = answers[row_id], cuvee_rows.answer_of(row["messages"])
        failed = answer.finish == "failed"
        common = {
            "task": f"{task}/{row['source']}",
            "version": f"{VERSION} max_new_tokens={decoding.max_new_tokens}",
            "item": row_id if target == 0 else f"{row_id}:{target}",
            "prompt": shown(cuvee_rows.prompt_of(row["messages"])),
            "prediction": answer.text,
            "reference": reference,
            "tokens": answer.tokens,
            "error": (answer.error or "the generation failed") if failed else "",
        }
        score = None if failed else scorer.sentence_score(answer.text, [reference]).score / 100
        out.append({**common, "metric": "bleu", "score": score})
        out.append({**common, "metric": "length", "main": False, "score": None if failed else float(answer.tokens)})
    return table(out)
