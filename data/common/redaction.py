"""Keeps secrets and terminal control codes out of whatever is printed or written: logs, manifests, error files.

Known by place (values of environment variables named like secrets, URLs with credentials, settings named like keys)
and by shape (tokens of the usual services). Knows nothing of who prints.
"""

from __future__ import annotations

import os
import re
from typing import Any

HIDDEN = "***"
NAMES = r"(?:api[_-]?key|access[_-]?key|private[_-]?key|secret|token|passw(?:or)?d|passphrase|credentials?)"
_VARIABLE = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|API_?KEY|ACCESS_KEY|PRIVATE_KEY|_KEY)$")
_SHAPES = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|xox[abprs]-[\w-]{10,}"
    r"|AKIA[A-Z0-9]{16}|AIza[\w-]{30,})"
)
_STARTS = ("hf_", "sk-", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "xox", "AKIA", "AIza")
_WORDS = ("key", "secret", "token", "passw", "passphrase", "credential")
_URL = re.compile(r"(?P<before>\b[a-zA-Z][a-zA-Z0-9+.-]{1,20}://)[^\s/@'\"]{1,500}@")
_QUERY = re.compile(rf"(?i)([?&](?:[\w-]{{0,40}}{NAMES}|sig|signature|x-amz-signature)=)[^&\s'\"#]+")
_BEARER = re.compile(r"(?i)\b((?:authorization['\"]?\s*[:=]\s*['\"]?)?(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}")
_SETTING = re.compile(
    rf"(?i)((?<![\w-])[\w-]{{0,40}}{NAMES}['\"]?\s*[:=]\s*['\"]?)(?=[^\s'\",}}]*[0-9])[^\s'\",}}]{{8,}}"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def _environment() -> list[str]:
    """Values of variables that are named like secrets."""
    return [
        value
        for name, value in os.environ.items()
        if len(value) >= 8 and _VARIABLE.search(name.upper()) and not value.startswith(("/", "~"))
    ]


def redact(text: str) -> str:
    """The text with every secret in it as ``***``."""
    return _redact(text, _environment())


def _redact(text: str, known: list[str]) -> str:
    for value in known:
        text = text.replace(value, HIDDEN)
    if any(start in text for start in _STARTS):  # the expressions are slow, and most texts hold nothing like it
        text = _SHAPES.sub(HIDDEN, text)
    if "://" in text:
        text = _URL.sub(rf"\g<before>{HIDDEN}@", text)
    if "=" not in text and ":" not in text and "asic" not in text.lower() and "earer" not in text.lower():
        return text
    text = _QUERY.sub(rf"\g<1>{HIDDEN}", text) if "=" in text else text
    text = _BEARER.sub(rf"\g<1>{HIDDEN}", text)
    if any(word in text.lower() for word in _WORDS):
        text = _SETTING.sub(rf"\g<1>{HIDDEN}", text)
    return text


def redacted(value: Any) -> Any:
    """The same for every text in plain data; other values stay as they are."""
    return _redacted(value, _environment())


def _redacted(value: Any, known: list[str]) -> Any:
    if isinstance(value, str):
        return _redact(value, known)
    if isinstance(value, dict):
        return {_redacted(k, known): _redacted(v, known) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(v, known) for v in value]
    return value


def has_secret(text: str) -> bool:
    """Whether a setting's value is, or holds, a secret."""
    return redact(text) != text


def printable(text: str) -> str:
    """The text without secrets, and with control codes spelled out: hostile input cannot steer a terminal."""
    return _CONTROL.sub(lambda m: m[0].encode("unicode_escape").decode(), redact(text))
