"""What is cleaned: settings that each do something, or are refused."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from data.common.config import Config
from data.common.errors import nearest

Personal = Literal["email", "phone", "ip", "card", "iban"]
LANGUAGE = re.compile("[a-z]{2,3}")


class CleanConfig(Config):
    """How texts are cleaned, and which rows are left out, before anything else is done with them.

    Texts are mended in this order: mojibake, markup, control, unicode, mask. Then rows are dropped, by length, by
    language, and as duplicates. Nothing is done that is not asked for.
    """

    mojibake: bool = Field(False, description="text whose encoding was misread is mended (ftfy), such as ‘cafÃ©’")
    markup: bool = Field(False, description="HTML tags are removed and its entities resolved, outside of code")
    control: bool = Field(False, description="control and zero-width characters that mean nothing are removed")
    unicode: Literal["nfc", "nfkc"] | None = Field(
        None, description="normal form of all characters; nfkc also makes full-width and other variants plain"
    )
    mask: tuple[Personal, ...] = Field(
        (), description="personal data that is replaced: email, phone, ip, card, iban become [EMAIL] and so on"
    )
    phone_region: str | None = Field(
        None, description="country such as US whose phone numbers are known without +; default: none"
    )
    min_characters: int | None = Field(None, ge=1, description="rows with a shorter response (or prompt, or text) go")
    max_characters: int | None = Field(None, ge=1, description="rows with a longer response (or prompt, or text) go")
    languages: tuple[str, ...] = Field(
        (), description="rows in another language go, such as [en, de]; too short to tell stay"
    )
    duplicates: Literal["exact", "near"] | None = Field(
        None, description="rows that equal one before in their part go, or also those that nearly do (MinHash)"
    )

    @field_validator("mask", "languages", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else () if value is None else value

    @field_validator("mask", "languages")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"{', '.join(value)} names one twice")
        return value

    @field_validator("languages")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value:
            from data.languages import known_languages

            known = known_languages()
            for one in value:
                if one not in known:
                    hint = nearest(one, known) or f" Known: {', '.join(sorted(known))}."
                    raise ValueError(f"there is no language {one!r}; write codes such as en, zh, ar.{hint}")
        return value

    @field_validator("phone_region")
    @classmethod
    def _country(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch("[A-Z]{2}", value):
            raise ValueError(f"{value!r} must be a country's two letters, such as US")
        return value

    @model_validator(mode="after")
    def _acts(self) -> CleanConfig:
        if self.phone_region is not None and "phone" not in self.mask:
            raise ValueError("phone_region has no effect: phone is not among mask")
        low, high = self.min_characters, self.max_characters
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_characters {low} is above max_characters {high}: no row would be left")
        return self

    @property
    def active(self) -> bool:
        """Whether anything is asked for."""
        return any(getattr(self, name) for name in type(self).model_fields)
