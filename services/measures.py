"""What is measured, and when.

Held-out rows are those that a table's `holdout` set aside. Losses are per token of the assistant's text, in nats.
Everything measured is a table of items, so any two arms can be compared in pairs.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from cuvee.config import Config
from cuvee.protocols import Decoding
from evaluation.judges import JudgeConfig

BASE = "base"
"""The model before any stage, as a word of `init` and `at`."""

EACH = "*"
"""Every epoch of a stage, in `at`: `sft@*`."""

CURRENT = "current"
"""The model of the round, as a word inside `iterate`."""


def _words(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _decoding(value: Any) -> Any:
    return {} if value == "greedy" else value


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]


class TaskOptions(Config):
    """How one task is asked."""

    shots: int | None = Field(
        default=None, ge=0, description="worked examples before the question; the task's own if absent"
    )
    limit: int | None = Field(default=None, ge=1, description="first so many items; all if absent")
    chat: bool | None = Field(default=None, description="ask through the chat template; the task's own way if absent")
    max_new_tokens: int | None = Field(default=None, ge=1, description="tokens of an answer; the task's own if absent")
    data: str = Field(
        default="",
        description='other rows than the package\'s: a file in the hub\'s format, "hub:" or "hub:name@split"',
    )


class Judged(Config):
    """An open-ended set (such as MT-Bench) and who judges the answers."""

    judge: JudgeConfig | None = Field(default=None, description="the judge; the set's own if absent")
    against: Literal["base"] | None = Field(
        default=None, description="also the win rate against this model's answers to the same prompts, in both orders"
    )
    times: int = Field(default=1, ge=1, description="judgements per answer: one greedy, or more sampled and averaged")


class Evaluate(Config):
    """`tasks` say what the training was for, `retention` what the model should not forget: the drop is against base."""

    tasks: Words = Field(default=(), description="benchmarks or suites by name; name@shots sets the examples")
    retention: Words = Field(default=(), description="suites or tasks whose mean drop against base is reported")
    judged: dict[str, Judged] = Field(
        default_factory=dict, description="open-ended sets; a list takes their own judges"
    )
    output_loss: Words = Field(
        default=(), description="tables whose rows as trained on are scored: loss of the answers"
    )
    gold_loss: Words = Field(default=(), description="tables whose held-out rows are scored: loss of the gold answers")
    accuracy: dict[str, JudgeConfig] = Field(
        default_factory=dict, description="table to judge: answers to the table's held-out prompts, judged"
    )
    bleu: Words = Field(
        default=(), description="tables whose training prompts are answered greedily and compared with targets"
    )
    at: Words = Field(
        default=("base", "final"),
        description="points: base, final, a stage, stage@epoch, stage@* (each epoch), table@round of an iterated table",
    )
    options: dict[str, TaskOptions] = Field(default_factory=dict, description="by task")
    limit: int | None = Field(default=None, ge=1, description="first so many items of every task; all if absent")
    decoding: Annotated[Decoding, BeforeValidator(_decoding)] = Field(
        default_factory=Decoding, description="for generated answers; greedy if absent"
    )

    @field_validator("judged", mode="before")
    @classmethod
    def _sets(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [value]
        if isinstance(value, list | tuple):
            return {str(name): {} for name in value}
        return value

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables that are measured on."""
        return tuple(dict.fromkeys((*self.output_loss, *self.gold_loss, *self.accuracy, *self.bleu)))


class Point(Config):
    """A moment of measuring: `name` of a stage or table, `number` of its epoch or round (0: its end)."""

    kind: Literal["base", "stage", "round"]
    name: str = ""
    number: int = 0

    @property
    def label(self) -> str:
        return f"{self.name}@{self.number}" if self.number else self.name or "base"
