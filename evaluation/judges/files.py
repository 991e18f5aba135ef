"""Judging rows of a file: `prompt`, `prediction`, and `reference` (a text or a list) or `tests` (asserts)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cuvee.errors import DataError
from cuvee.protocols import Case, Judge


def read(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, row) of a JSONL file. Raises DataError with file and line."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(f"not JSON: {error.msg}", path=str(path), line=number) from error
                if not isinstance(row, dict):
                    raise DataError("a row is a JSON object", path=str(path), line=number)
                yield number, row
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=str(path)) from error
    except UnicodeDecodeError as error:
        raise DataError("not UTF-8", path=str(path), remedy="save the file as UTF-8") from error


def case(row: Mapping[str, Any], *, path: str, line: int) -> Case:
    """Raises DataError where a field is missing or of another kind. A row without reference is judged `unsure`."""
    prediction = row.get("prediction")
    if not isinstance(prediction, str):
        raise DataError("must be text", path=path, line=line, field="prediction")
    meta = row.get("meta") or {}
    if not isinstance(meta, Mapping):
        raise DataError("must be an object", path=path, line=line, field="meta")
    return Case(
        id=str(row.get("id", line)),
        prompt=str(row.get("prompt") or ""),
        prediction=prediction,
        references=_texts(row, ("references", "reference"), path, line),
        tests=_texts(row, ("tests",), path, line),
        meta=meta,
    )


def _texts(row: Mapping[str, Any], fields: tuple[str, ...], path: str, line: int) -> tuple[str, ...]:
    for field in fields:
        value = row.get(field)
        if value is None:
            continue
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return (str(value),)
        if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
            return tuple(str(item) for item in value)
        raise DataError("must be text or a list of texts", path=path, line=line, field=field)
    return ()


def judge_file(path: Path, judge: Judge, out: Path) -> dict[str, int]:
    """Write the rows to `out` with `verdict`, `reason`, `evidence`, `judge`; returns how many got each verdict."""
    rows = list(read(path))
    verdicts = judge([case(row, path=str(path), line=line) for line, row in rows])
    partial = out.with_name(out.name + ".tmp")
    with partial.open("w", encoding="utf-8") as file:
        for (_, row), verdict in zip(rows, verdicts, strict=True):
            found: dict[str, Any] = {
                "verdict": verdict.label.value,
                "reason": verdict.reason,
                "evidence": verdict.evidence,
                "judge": f"{judge.name}@{judge.version}",
            }
            if verdict.score is not None:
                found["score"] = verdict.score
            file.write(json.dumps({**row, **found}, ensure_ascii=False) + "\n")
    partial.replace(out)
    counts = Counter(verdict.label.value for verdict in verdicts)
    return {label: counts[label] for label in ("equivalent", "different", "unsure")}
