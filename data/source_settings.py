"""Settings of the data: its sources with how each is read and how much of it is used, and what is held out."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from data.cleaning.settings import CleanConfig
from data.common.config import Config
from data.common.errors import nearest
from data.formats import FORMATS
from data.readers.rows import ReadOptions, TextUnit, known_encoding
from data.where import where


class Source(Config):
    """One source with settings of its own: how it is read, which of its rows are used, and how many.

    ``where`` is asked first, of the columns as the source has them; then rows are parsed; then ``weight`` and ``limit``
    sample among those that can be used. Which rows a sample takes follows from the recipe's seed and each row's
    content, so it stays as it is when other rows come or go.
    """

    path: str = Field(min_length=1, description="a file, a folder, a pattern with *, or a hub id")
    columns: dict[str, str] = Field({}, description="a format's column: the source's, such as {prompt: question}")
    format: str | None = Field(None, description="the format to read every row as; default: the one that fits")
    ignore: tuple[str, ...] = Field((), description="columns, or patterns such as meta_*, that are not read")
    weight: float | None = Field(None, gt=0, le=1, description="share of the rows that is used")
    limit: int | None = Field(None, ge=1, description="at most so many rows are used")
    where: str | None = Field(None, description="rows that are used, such as score > 3 and lang in ['en', 'de']")
    encoding: str | None = Field(None, description="of text files, such as gb18030; default: found out")
    delimiter: str | None = Field(None, description="between the cells of a table; default: found out")
    header: bool | tuple[str, ...] = Field(
        True, description="false: a table has no header line, its cells are responses, best first; or its column names"
    )
    split: str | None = Field(None, description="of a hub data set, a folder, a JSON file of several lists, or a sheet")
    config: str | None = Field(None, description="configuration of a hub data set")
    data_dir: str | None = Field(None, description="folder inside a hub data set or a local folder")
    revision: str | None = Field(None, description="commit, branch or tag of a hub data set")

    @field_validator("format")
    @classmethod
    def _known_format(cls, value: str | None) -> str | None:
        if value is not None and value not in FORMATS:
            hint = nearest(value, FORMATS) or f" Formats: {', '.join(FORMATS)}."
            raise ValueError(f"there is no format {value!r}.{hint}")
        return value

    @field_validator("where")
    @classmethod
    def _an_expression(cls, value: str | None) -> str | None:
        if value is not None:
            where(value)
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | None) -> str | None:
        if value is not None and not known_encoding(value):
            raise ValueError(f"there is no encoding {value!r}; common ones are utf-8, utf-16, gb18030, latin-1, cp1252")
        return value

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, value: str | None) -> str | None:
        value = {"tab": "\t", "\\t": "\t"}.get(value or "", value)
        if value is not None and (len(value) != 1 or value in '"\r\n'):
            raise ValueError(f"the delimiter {value!r} must be one character, or 'tab'")
        return value

    @field_validator("header", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        listed = isinstance(value, list | tuple)
        if listed and (not value or len(set(map(str, value))) < len(value)):
            raise ValueError("header must name at least one column, and none twice")
        return value

    def options(self, text_unit: TextUnit = "auto", group_by: str | None = None) -> ReadOptions:
        """How files of this source are read."""
        wanted = where(self.where).columns if self.where else ()
        return ReadOptions(
            text_unit=text_unit,
            encoding=self.encoding,
            delimiter=self.delimiter,
            header=self.header,
            split=self.split,
            names=(*self.columns.values(), *self.ignore, *wanted, *([group_by] if group_by else [])),
        )


Sources = tuple[str | Source, ...]


class DataConfig(Config):
    """Where the records come from, and what is held out.

    A source is a path (relative to the recipe, also with ``*``, or a folder), a hub id (``org/name``,
    ``hub:org/name:split``), ``demo-task``, or ``{path, ...}`` with settings of its own; one or a list.
    """

    demonstrations: Sources = Field((), description="prompts with good responses, for SFT")
    rankings: Sources = Field((), description="prompts with ranked responses, for the reward model")
    prompts: Sources = Field((), description="prompts for PPO and evaluation; default: those of the others")
    documents: Sources = Field((), description="text for pretraining a base; default: that of the others")
    held_out: float | str | Source = Field(
        0.1, description="share of the groups kept from all training, or a file of prompts, as any source"
    )
    group_by: str | None = Field(None, description="column that names a row's group; default: its first user message")
    annotators: Literal["keep", "share", "mean"] = Field(
        "keep", description="several people's rankings of the same: each counts 1, each 1/m, or their mean rank"
    )
    text_unit: TextUnit = Field("auto", description="what a document is in a text file")
    ignore: tuple[str, ...] = Field(
        (),
        description="columns, or patterns such as `note_*`, that no format has to read; others must be read",
    )

    clean: CleanConfig = Field(CleanConfig(), description="what is mended, masked and left out before anything else")

    @field_validator("ignore", mode="before")
    @classmethod
    def _one_column_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else () if value is None else value

    @field_validator("demonstrations", "rankings", "prompts", "documents", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | dict | Source) else () if value is None else value

    @field_validator("held_out")
    @classmethod
    def _share(cls, value: float | str | Source) -> float | str | Source:
        if isinstance(value, float) and not 0 <= value < 1:
            raise ValueError(f"held_out {value} must be a share from 0 to under 1, or the path of a file of prompts")
        return value


def as_source(entry: str | Source) -> Source:
    """An entry of a recipe as a ``Source``."""
    return Source(path=entry) if isinstance(entry, str) else entry
