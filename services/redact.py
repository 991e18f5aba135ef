"""Hides credentials in everything that Cuvee writes or prints: recipes, journals, MLflow, reports, error messages.

Three nets, because each has holes: values of environment variables with a telling name, wherever they appear; values
under a telling key; and texts in the form of a known token. What looks like a name of a token (`eos_token`) or a count
(`max_tokens`) stays, or training settings would be unreadable.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, TypeVar

HIDDEN = "***"

T = TypeVar("T")

_NAME = re.compile(
    r"(?:^|[_\-.])(?:api[_\-]?key|access[_\-]?key(?:[_\-]?id)?|secret(?:[_\-]?(?:access[_\-]?)?key)?|private[_\-]?key|"
    r"token|password|passwd|passphrase|credentials?|authorization)$",
    re.IGNORECASE,
)
_ENVIRONMENT = re.compile(r"(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(?:_ID)?$|SECRET|PASSWORD")
_HARMLESS = re.compile(r"(?:^|_)(?:eos|bos|pad|unk|cls|sep|mask|sot|eot|image|stop|first)_token$", re.IGNORECASE)
_SHORTEST = 6
"""Shorter values of environment variables are no secrets and would hide ordinary text."""

_PATTERNS = (
    # User and password, or a token alone, in an address.
    (re.compile(r"(?P<keep>[a-zA-Z][a-zA-Z0-9+.\-]*://)[^/\s@'\"]+@"), rf"\g<keep>{HIDDEN}@"),
    # Signed addresses and keys in a query.
    (
        re.compile(
            r"(?P<keep>[?&](?:X-Amz-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|Signature|sig|token|"
            r"access_token|api_?key|key|password|secret)=)[^&\s'\"]+",
            re.IGNORECASE,
        ),
        rf"\g<keep>{HIDDEN}",
    ),
    (re.compile(r"(?P<keep>\b(?:Bearer|Basic)\s+)[A-Za-z0-9._~+/=\-]{8,}"), rf"\g<keep>{HIDDEN}"),
    # NAME=value with a telling name, as on a command line or in a log.
    (
        re.compile(r"(?P<keep>\b[A-Z0-9_]*(?:TOKEN|API_KEY|ACCESS_KEY|SECRET|PASSWORD)[A-Z0-9_]*=)[^\s'\"]+"),
        rf"\g<keep>{HIDDEN}",
    ),
    (re.compile(r"(?P<keep>--(?:api-key|token|password|secret)[= ])\S+"), rf"\g<keep>{HIDDEN}"),
    # Known forms: Hugging Face, OpenAI and Anthropic, GitHub, GitLab, Slack, AWS, Google, JSON web tokens.
    (
        re.compile(
            r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_\-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|"
            r"glpat-[\w\-]{16,}|xox[abprs]-[\w\-]{10,}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w\-]{30,}|"
            r"eyJ[\w\-]{10,}\.[\w\-]{10,}\.[\w\-]{5,})"
        ),
        HIDDEN,
    ),
)


def redact(value: T) -> T:
    """The same text, or mapping, list and tuple of them, with credentials replaced by `***`. Other values stay."""
    return _redacted(value, _secrets())


def _secrets() -> list[str]:
    """Values of telling environment variables, long ones first: one may contain another."""
    found = {v for k, v in os.environ.items() if _ENVIRONMENT.search(k.upper()) and len(v) >= _SHORTEST}
    return sorted((v for v in found if not os.path.exists(v)), key=len, reverse=True)


def _redacted(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, str):
        return _text(value, secrets)
    if isinstance(value, Mapping):
        return {k: HIDDEN if _telling(k, v) else _redacted(v, secrets) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_redacted(item, secrets) for item in value)
    return value


def _telling(key: object, value: object) -> bool:
    """A key that announces a secret, with a value that can be one."""
    name = str(key)
    return isinstance(value, str) and bool(value) and bool(_NAME.search(name)) and not _HARMLESS.search(name)


def _text(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text
