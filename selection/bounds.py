"""Bounds on length and language, the operation `filter`.

Lengths are in characters, which need no tokenizer and mean the same for every model. The language is that of the prompt
(an answer may be code) by langdetect (Shuyo 2010), seeded; it decides a few hundred texts a second and errs on short
ones, so that a prompt with too few letters stays unless `unsure` says otherwise.
"""

from __future__ import annotations

from typing import Literal

import pyarrow as pa
from pydantic import Field, model_validator

from cuvee.config import Config
from cuvee.rows import answer_of
from selection.hygiene import asked_text, conversations, split

_LETTERS = 20
_READ = 2000
"""Characters that the detector reads: more cost time and do not change its mind."""


class BoundsConfig(Config):
    """Which rows stay. A bound that is absent bounds nothing."""

    min_prompt: int = Field(0, ge=0, description="characters of the prompt without system turns")
    max_prompt: int | None = Field(None, ge=1, description="characters")
    min_answer: int = Field(0, ge=0, description="characters of the last answer")
    max_answer: int | None = Field(None, ge=1, description="characters")
    max_turns: int | None = Field(None, ge=2, description="messages of the conversation, system turns included")
    languages: tuple[str, ...] = Field(
        (), description='ISO 639-1 codes, e.g. [en, de]; "zh-cn" and "zh-tw" for Chinese'
    )
    unsure: Literal["keep", "drop"] = "keep"

    @model_validator(mode="after")
    def _ordered(self) -> BoundsConfig:
        for name in ("prompt", "answer"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if high is not None and high < low:
                raise ValueError(f"max_{name} {high} is below min_{name} {low}")
        unknown = set(self.languages) - _known_languages() if self.languages else set()
        if unknown:
            raise ValueError(f"unknown languages {sorted(unknown)}; known: {', '.join(sorted(_known_languages()))}")
        return self


def bounds(table: pa.Table, config: BoundsConfig) -> tuple[pa.Table, pa.Table]:
    """(kept, removed); the reason names the first bound that a row breaks, with its figure."""
    gone = {}
    for place, messages in enumerate(conversations(table)):
        asked = asked_text(messages)
        reason = (
            _outside("prompt", len(asked), config.min_prompt, config.max_prompt)
            or _outside("answer", len(answer_of(messages)), config.min_answer, config.max_answer)
            or _outside("conversation", len(messages), 0, config.max_turns, "messages")
            or _foreign(asked, config)
        )
        if reason:
            gone[place] = {"reason": reason}
    return split(table, gone)


def _outside(what: str, size: int, low: int, high: int | None, unit: str = "characters") -> str:
    if size < low:
        return f"{what} of {size} {unit}, below {low}"
    return f"{what} of {size} {unit}, above {high}" if high is not None and size > high else ""


def _foreign(text: str, config: BoundsConfig) -> str:
    if not config.languages:
        return ""
    language = language_of(text)
    if language is None:
        return "language not certain" if config.unsure == "drop" else ""
    return "" if language in config.languages else f"language {language}"


def language_of(text: str) -> str | None:
    """The likeliest language of a text, None when it has too few letters to tell. The same in every process."""
    from langdetect import DetectorFactory, LangDetectException, detect

    if sum(c.isalpha() for c in text[:_READ]) < _LETTERS:
        return None
    DetectorFactory.seed = 0  # each detector starts its own generator from it, so texts do not affect each other
    try:
        return str(detect(text[:_READ]))
    except LangDetectException:
        return None


def _known_languages() -> set[str]:
    from pathlib import Path

    from langdetect.detector_factory import PROFILES_DIRECTORY

    return {path.name for path in Path(PROFILES_DIRECTORY).iterdir() if not path.name.startswith((".", "_"))}
