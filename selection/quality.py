"""Scores of rows: one number a row, in a column `score.<name>`.

A step `score: {<name>: <scorer>}` makes them, selectors read them. Scorers ask models through the protocols that are
handed in, and none is trusted to be a measure of worth:

- `length`: characters of the answer. The baseline that is hard to beat (arXiv 2402.04833).
- `ratio`: characters of the prompts by those of the answers, or how near that is to a given ratio.
- `column`: a number that the user brings, as a column or in the row's `meta`.
- `cosine`: of instruction and answer, under the encoder of the two sets of vectors. Low when the answer belongs to
  another question.
- `perplexity`: of the answer under a model, given its prompt.
- `ifd`: instruction-following difficulty (arXiv 2308.12032), the loss of the answer with its instruction over the loss
  without. Both are asked in the chat format, the second with an empty prompt, so that both are over the same tokens.
- `quality`, `complexity`, `deita` (their product): grades of 1 to 6 by an instruct model, see `grading`.
- `judge`, `reward`: the grade of a judging model (1 to 10, by its own or a given rubric), the score of a reward model.
  Both are the evaluation's, and are handed in.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from cuvee import rows
from cuvee.config import Config
from cuvee.errors import DataError, UserError
from cuvee.protocols import Generate, Grade, Message, Score, Scored, ScoreRequest
from cuvee.registry import Registry
from selection import grading
from selection.text import answers, texts
from selection.vectors import CHUNK, Vectors

Need = Literal["score", "generate", "grade", "vectors.instruction", "vectors.response"]
Reals = npt.NDArray[np.float64]
Progress = Callable[[int, int | None], object]


@dataclass(frozen=True)
class Tools:
    """What scorers may use. `vectors`: by the text that was embedded, "instruction" and "response"."""

    score: Score | None = None
    generate: Generate | None = None
    grade: Grade | None = None
    vectors: Mapping[str, Vectors] | None = None
    progress: Progress | None = None

    def seen(self, results: Iterable[Any], total: int) -> Iterator[Any]:
        """The results, counted."""
        for done, result in enumerate(results, start=1):
            if self.progress:
                self.progress(done, total)
            yield result


Values = tuple[Reals, dict[int, str]]
"""Scores (n,), NaN where there is none, and the reason for each row without one, by position."""


@dataclass(frozen=True)
class Scorer:
    run: Callable[[pa.Table, Spec, Tools], Values]
    needs: frozenset[Need] = frozenset()


SCORERS: Registry[Scorer] = Registry("scorer")
ASKING: frozenset[Need] = frozenset({"score", "generate", "grade"})
"""Needs that a model meets."""


class Spec(Config):
    """One scorer with its settings."""

    scorer: str
    model: str | None = Field(default=None, description="a name in `models`; default: the model of the recipe")
    column: str | None = Field(default=None, description="column: the column, or a key of `meta`")
    rubric: str = Field(
        default="", description="judge: what a good answer is; default: right, helpful, relevant, clear"
    )
    turns: Literal["sum", "mean", "last"] = Field(default="sum", description="deita: over the turns of a chat")
    near: float | None = Field(default=None, ge=0, description="ratio: the score is minus the distance to this one")

    @model_serializer(mode="wrap")
    def _as_said(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """`near` is in no key where it is not used."""
        return {name: value for name, value in dump(self).items() if name != "near" or value is not None}

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"scorer": value}
        if isinstance(value, Mapping) and "scorer" not in value and len(value) == 1:
            ((scorer, settings),) = value.items()
            named = {"column": settings} if isinstance(settings, str) and scorer == "column" else settings or {}
            if not isinstance(named, Mapping):
                raise ValueError(f"the settings of {scorer} are a map, not {named!r}")
            return {"scorer": scorer, **named}
        return value

    @field_validator("scorer")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            SCORERS[value]
        except UserError as error:
            raise ValueError(str(error)) from error
        return value

    @model_validator(mode="after")
    def _named(self) -> Spec:
        if self.scorer == "reward" and not self.model:
            raise ValueError("reward names no reward model: write {reward: {model: <name>}}")
        return self


class ScoreConfig(Config):
    """`<name>: <scorer>` for each column; a scorer is a word or `{word: settings}`. `deita: q` says `q: deita`."""

    scorers: dict[str, Spec] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return {"scorers": {value: value}} if isinstance(value, str) else value
        if set(value) == {"scorers"}:
            return value
        # `deita: {model: m}` is the scorer deita under its own name.
        value = {
            name: {"scorer": name, **spec}
            if name in SCORERS and isinstance(spec, Mapping) and "scorer" not in spec and not set(spec) & set(SCORERS)
            else spec
            for name, spec in value.items()
        }
        flipped = {
            name: isinstance(scorer, str) and name in SCORERS and scorer not in SCORERS
            for name, scorer in value.items()
        }
        return {"scorers": {s if flipped[n] else n: n if flipped[n] else s for n, s in value.items()}}

    @classmethod
    def parse(cls, value: Any) -> ScoreConfig:
        return cls.model_validate(value)

    def columns(self) -> tuple[str, ...]:
        """The names of the scores, which selectors use as `quality`."""
        return tuple(self.scorers)

    def needs(self) -> set[Need]:
        return {need for spec in self.scorers.values() for need in SCORERS[spec.scorer].needs}

    def model_name(self, default: str | None = None) -> str | None:
        """The one model that is asked; None when no scorer asks one. Raises UserError for two."""
        asking = [spec for spec in self.scorers.values() if ASKING & SCORERS[spec.scorer].needs]
        names = {spec.model or default for spec in asking}
        if len(names) > 1:
            raise UserError(
                f"scores under {len(names)} models in one step: {', '.join(sorted(map(str, names)))}",
                remedy="write a step score for each model",
            )
        return names.pop() if names else None


def add_scores(
    table: pa.Table,
    config: ScoreConfig,
    *,
    score: Score | None = None,
    generate: Generate | None = None,
    grade: Grade | None = None,
    vectors: Mapping[str, Vectors] | None = None,
    progress: Progress | None = None,
) -> pa.Table:
    """The table with a column `score.<name>` (float64, null without a score) for each scorer.

    Rows without a score have the reason in `unscored.<name>`, a column that is there only when it is needed. Raises
    UserError when a model or vectors are needed and not given.
    """
    tools = Tools(score, generate, grade, vectors, progress)
    for name, spec in config.scorers.items():
        values, faults = SCORERS[spec.scorer].run(table, spec, tools)
        column = pa.array(values, pa.float64(), mask=~np.isfinite(values))
        table = _with_column(table, f"score.{name}", column)
        if faults:
            reasons = np.full(table.num_rows, None, dtype=object)
            reasons[list(faults)] = list(faults.values())
            table = _with_column(table, f"unscored.{name}", pa.array(reasons, pa.string()))
    return table


def _with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    if name in table.column_names:
        return table.set_column(table.schema.get_field_index(name), name, values)
    return table.append_column(name, values)


def scorer(name: str, *needs: Need) -> Callable[[Callable[..., Values]], Callable[..., Values]]:
    """Decorator: registers a scorer."""

    def add(run: Callable[..., Values]) -> Callable[..., Values]:
        SCORERS.register(name)(Scorer(run, frozenset(needs)))
        return run

    return add


# without a model


@scorer("length")
def _length(table: pa.Table, spec: Spec, tools: Tools) -> Values:
    return np.asarray(pc.utf8_length(answers(table["messages"])), dtype=np.float64), {}


@scorer("ratio")
def _ratio(table: pa.Table, spec: Spec, tools: Tools) -> Values:
    """Characters of the prompts by those of the answers, 0 without an answer.

    Subsets of a given ratio, as in Instruction Modelling (arXiv 2405.14394, appendix C), are the `top` by nearness.
    """
    given, said = (
        np.asarray(pc.utf8_length(texts(table["messages"], part)), np.float64) for part in ("instruction", "response")
    )
    ratio = np.divide(given, said, out=np.zeros(len(said)), where=said > 0)
    return (ratio if spec.near is None else -np.abs(ratio - spec.near)), {}


@scorer("column")
def _column(table: pa.Table, spec: Spec, tools: Tools) -> Values:
    name = spec.column
    if not name:
        raise UserError("the scorer column names none", remedy="write {column: <name>}")
    if name in table.column_names:
        values: list[Any] = table[name].to_pylist()
    elif "meta" in table.column_names:
        values = [json.loads(meta).get(name) if meta else None for meta in table["meta"].to_pylist()]
    else:
        raise DataError(f"no column {name} and no meta", field=name)
    if all(value is None for value in values):
        raise DataError("no row has it, neither as a column nor in meta", field=name)
    numbers = np.array([float(v) if _is_number(v) else np.nan for v in values])
    faults = {
        int(i): "absent" if values[i] is None else f"{values[i]!r} is not a finite number"
        for i in np.flatnonzero(~np.isfinite(numbers))
    }
    return numbers, faults


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@scorer("cosine", "vectors.instruction", "vectors.response")
def _cosine(table: pa.Table, spec: Spec, tools: Tools) -> Values:
    given = tools.vectors or {}
    if not {"instruction", "response"} <= set(given):
        raise UserError("cosine needs embeddings of instruction and of response", remedy="embed both texts first")
    return cosine(table["id"], given["instruction"], given["response"]), {}


def cosine(ids: pa.ChunkedArray, instruction: Vectors, response: Vectors) -> Reals:
    """Cosine of the two vectors of each row (n,); 0 where one is zero. Raises DataError for a row without vectors."""
    places = [vectors.find(ids) for vectors in (instruction, response)]
    for vectors, place in zip((instruction, response), places, strict=True):
        if (place < 0).any():
            raise DataError(f"{int((place < 0).sum())} rows have no embedding", path=str(vectors.folder or ""))
    out = np.empty(len(ids))
    for start in range(0, len(ids), CHUNK):
        here = slice(start, start + CHUNK)
        a, b = (v.take(p[here]).astype(np.float64) for v, p in zip((instruction, response), places, strict=True))
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        out[here] = np.einsum("ij,ij->i", a, b) / np.where(norms > 0, norms, 1)
    return out


# by probabilities


@scorer("perplexity", "score")
def _perplexity(table: pa.Table, spec: Spec, tools: Tools) -> Values:
    values, faults = _losses(table, tools, lambda messages: messages)
    return np.exp(values), faults


@scorer("ifd", "score")
def _ifd(table: pa.Table, spec: Spec, tools: Tools) -> Values:
    given, faults = _losses(table, tools, lambda messages: messages)
    alone, more = _losses(table, tools, _without_prompt)
    ratio = np.divide(given, alone, out=np.full(len(given), np.nan), where=np.isfinite(alone) & (alone > 0))
    certain = {int(i): "the answer is certain without its instruction" for i in np.flatnonzero(alone == 0)}
    return ratio, {**certain, **more, **faults}


def _without_prompt(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    return (Message(role="user", content=""), Message(role="assistant", content=rows.answer_of(messages)))


def _losses(table: pa.Table, tools: Tools, change: Callable[[tuple[Message, ...]], tuple[Message, ...]]) -> Values:
    """Mean negative log-probability of each row's last answer, in nats a token."""
    if tools.score is None:
        raise UserError("this score needs a model", remedy="write {<scorer>: {model: <name>}}")
    place = _places(table)
    requests = (ScoreRequest(name, change(record["messages"]), last_only=True) for name, record in _named(table))
    values, faults = np.full(table.num_rows, np.nan), {}
    for result in tools.seen(tools.score(requests), table.num_rows):
        loss, at = _loss(result), place[result.id]
        if loss is None:
            faults[at] = _fault(result) or ""
        else:
            values[at] = loss
    return values, faults


def _loss(result: Scored) -> float | None:
    return None if _fault(result) else -result.logprob / result.tokens


def _fault(result: Scored) -> str | None:
    if result.error:
        return result.error
    return None if result.tokens and math.isfinite(result.logprob) else "no token of the answer was scored"


# by grades


@scorer("quality", "generate")
@scorer("complexity", "generate")
@scorer("deita", "generate")
def _deita(table: pa.Table, spec: Spec, tools: Tools) -> Values:
    if tools.generate is None:
        raise UserError(f"the score {spec.scorer} needs a model", remedy=f"write {{{spec.scorer}: {{model: <name>}}}}")
    kinds = ("quality", "complexity") if spec.scorer == "deita" else (spec.scorer,)
    place = _places(table)
    turns = {name: grading.turns(record["messages"], spec.turns) for name, record in _named(table)}
    results = tools.generate(grading.requests(turns, kinds), grading.DECODING)
    asked = sum(len(pairs) for pairs in turns.values()) * len(kinds)
    grades, failed = grading.grades(tools.seen(results, asked))
    faults = {at: "no instruction with an answer" for name, at in place.items() if not turns[name]}
    faults |= {place[name]: reason for name, reason in failed.items()}
    values = np.full(table.num_rows, np.nan)
    for name, found in grades.items():
        if name not in failed:
            values[place[name]] = grading.combine(found, len(kinds), mean=spec.turns == "mean")
    return values, faults


@scorer("judge", "grade")
@scorer("reward", "grade")
def _graded(table: pa.Table, spec: Spec, tools: Tools) -> Values:
    if tools.grade is None:
        raise UserError(f"the score {spec.scorer} needs a model", remedy=f"write {{{spec.scorer}: {{model: <name>}}}}")
    place = _places(table)
    asked = [(name, record["messages"], rows.answer_of(record["messages"])) for name, record in _named(table)]
    values = np.full(table.num_rows, np.nan)
    for name, grade in tools.grade(spec.scorer, asked, spec.rubric).items():
        values[place[name]] = np.nan if grade is None else grade
    return values, {int(at): f"the {spec.scorer} gave no grade" for at in np.flatnonzero(~np.isfinite(values))}


def _named(table: pa.Table) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name of the request, row); the name is the id, with the target where it is not the first."""
    columns = [name for name in ("id", "target", "messages") if name in table.column_names]
    for record in rows.records(table.select(columns)):
        yield _name(record["id"], record.get("target", 0)), record


def _name(id: str, target: int) -> str:
    return f"{id}#{target}" if target else id


def _places(table: pa.Table) -> dict[str, int]:
    targets = table["target"].to_pylist() if "target" in table.column_names else [0] * table.num_rows
    return {_name(id, target): at for at, (id, target) in enumerate(zip(table["id"].to_pylist(), targets, strict=True))}
