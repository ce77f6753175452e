"""Personal data in text: what has its form and passes its check is replaced by its name in brackets."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import Any

from data.common.errors import UserError

Span = tuple[int, int]

EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9](?:[A-Za-z0-9._%+-]{0,62}[A-Za-z0-9_%+-])?@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+(?:[A-Za-z]{2,24}|xn--[A-Za-z0-9-]{2,40})(?![A-Za-z0-9-])"
)
IP = re.compile(
    r"(?<![\w.:])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)"
    r"|(?<![\w.:])[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?![\w:]|\.\d)"
)
CARD = re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,18}(?![\d]|\.\d)")
IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")


def check_libraries(kinds: tuple[str, ...]) -> None:
    """Refuse kinds whose library is not installed.

    Raises:
        UserError: it names the extra.
    """
    need = {"phone": "phonenumbers", "card": "stdnum", "iban": "stdnum"}
    for kind in kinds:
        if kind in need:
            library(need[kind], f"data.clean.mask: {kind}")


def library(name: str, setting: str) -> Any:
    """An import of the extra ``clean``.

    Raises:
        UserError: it is not installed.
    """
    from importlib import import_module

    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"{setting} needs the package {error.name}: pip install 'trivet[clean]'") from error


def masked(text: str, kinds: tuple[str, ...], region: str | None = None) -> tuple[str, dict[str, int]]:
    """The text with personal data of these kinds replaced, and how many of each were."""
    counts: dict[str, int] = {}
    for kind, find in FINDERS.items():
        if kind not in kinds:
            continue
        spans = list(find(text, region))
        for start, end in reversed(spans):
            text = f"{text[:start]}[{kind.upper()}]{text[end:]}"
        if spans:
            counts[kind] = len(spans)
    return text, counts


def _emails(text: str, region: str | None) -> Iterator[Span]:
    if "@" in text:
        yield from (m.span() for m in EMAIL.finditer(text))


def _addresses(text: str, region: str | None) -> Iterator[Span]:
    for found in IP.finditer(text):
        address = found.group().rstrip(".:" if "." in found.group() else ".")
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            continue
        if parsed.version == 4 or any(c.isdigit() for c in address):
            yield found.start(), found.start() + len(address)


def _cards(text: str, region: str | None) -> Iterator[Span]:
    from stdnum import luhn

    for found in CARD.finditer(text):
        digits = re.sub(r"\D", "", found.group())
        if digits[0] in "23456" and len(set(digits)) > 1 and luhn.is_valid(digits):
            yield found.span()


def _ibans(text: str, region: str | None) -> Iterator[Span]:
    from stdnum import iban

    for found in IBAN.finditer(text):
        words = found.group().split(" ")
        for end in range(len(words), 0, -1):  # a word in capitals may follow
            part = " ".join(words[:end])
            if iban.is_valid(part):
                yield found.start(), found.start() + len(part)
                break


def _phones(text: str, region: str | None) -> Iterator[Span]:
    if sum(c.isdigit() for c in text) < 6:
        return
    import phonenumbers

    for found in phonenumbers.PhoneNumberMatcher(text, region):
        yield found.start, found.end


FINDERS: dict[str, Callable[[str, str | None], Iterator[Span]]] = {
    "iban": _ibans,
    "card": _cards,
    "email": _emails,
    "ip": _addresses,
    "phone": _phones,
}
"""In the order in which they are looked for: a card's digits could be taken for a phone number."""
