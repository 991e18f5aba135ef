"""How far a judge agrees with people.

Reported apart, because they cost differently: accuracy on what the judge decided, abstention (`unsure`), false
accepts (wrong targets in the data) and false rejects (fewer of the model's own answers), and Cohen's kappa, which takes
out the agreement that chance alone would give.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cuvee.errors import DataError
from cuvee.protocols import Case, Judge, Label, Verdict
from evaluation.judges.files import case, read

_YES = {"equivalent", "correct", "same", "yes", "true", "1"}
_NO = {"different", "incorrect", "wrong", "no", "false", "0"}


@dataclass(frozen=True)
class Calibration:
    """`decided` of `rows` got a verdict; `accuracy` and `kappa` are over those. `accuracy_all` counts `unsure` as not
    equivalent, which is how it is used. `false_accepts` and `false_rejects` are counts.
    `models`: those that it asks, as the user named them."""

    judge: str
    version: str
    rows: int
    decided: int
    abstention: float
    accuracy: float
    accuracy_all: float
    kappa: float
    false_accepts: int
    false_rejects: int
    models: tuple[str, ...] = ()


def calibrate(judge: Judge, cases: Sequence[Case], labels: Sequence[bool]) -> tuple[Calibration, list[Verdict]]:
    """`labels`: whether a person found prediction and reference equivalent. Returns the verdicts too."""
    verdicts = judge(cases)
    pairs = list(zip(verdicts, labels, strict=True))
    decided = [(v.label is Label.EQUIVALENT, human) for v, human in pairs if v.label is not Label.UNSURE]
    right = sum(said == human for said, human in decided)
    right_all = sum((v.label is Label.EQUIVALENT) == human for v, human in pairs)
    found = Calibration(
        judge=judge.name,
        version=judge.version,
        rows=len(pairs),
        decided=len(decided),
        abstention=1 - len(decided) / max(len(pairs), 1),
        accuracy=right / max(len(decided), 1),
        accuracy_all=right_all / max(len(pairs), 1),
        kappa=kappa(decided),
        false_accepts=sum(said and not human for said, human in decided),
        false_rejects=sum(human and not said for said, human in decided),
    )
    return found, verdicts


def kappa(pairs: Sequence[tuple[bool, bool]]) -> float:
    """Cohen's kappa of two raters; 1 where both always say the same one word, nan without pairs."""
    n = len(pairs)
    if not n:
        return float("nan")
    agreed = sum(a == b for a, b in pairs) / n
    first, second = sum(a for a, _ in pairs) / n, sum(b for _, b in pairs) / n
    chance = first * second + (1 - first) * (1 - second)
    return 1.0 if chance == 1 else (agreed - chance) / (1 - chance)


def labelled(path: Path) -> tuple[list[Case], list[bool]]:
    """Cases and people's labels from a JSONL file with the field `label` (`equivalent`/`different`, `correct`/`wrong`,
    true/false, 1/0). Raises DataError."""
    cases: list[Case] = []
    labels: list[bool] = []
    for line, row in read(path):
        word = str(row.get("label", "")).strip().casefold()
        if word not in _YES | _NO:
            raise DataError(
                f"{row.get('label')!r} is no label", path=str(path), line=line, field="label",
                remedy="write equivalent or different",
            )  # fmt: skip
        cases.append(case(row, path=str(path), line=line))
        labels.append(word in _YES)
    return cases, labels


def store(found: Calibration, folder: Path) -> Path:
    """Write `<judge>-<version>-<models>.json` beside the judge's other files and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    name = "-".join((found.judge, found.version, *found.models))
    path = folder / (re.sub(r"[^\w.@-]+", "_", name)[:200] + ".json")
    record: dict[str, Any] = asdict(found)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return path
