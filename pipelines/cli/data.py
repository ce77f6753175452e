"""What the ``data`` commands read from their options."""

from __future__ import annotations

from collections.abc import Sequence

from data.common.errors import UserError
from data.source_settings import Source


def reading(columns: Sequence[str] | None, ignore: Sequence[str] | None) -> Source | None:
    """How files are read, by ``--columns`` and ``--ignore``; None where neither is given.

    Raises:
        UserError: a mapping is not ``OURS=THEIRS``, or names one of ours twice.
    """
    mapping: dict[str, str] = {}
    for one in columns or ():
        ours, equals, theirs = one.partition("=")
        if not (ours and equals and theirs) or ours in mapping:
            raise UserError(f"--columns {one}: must have the form OURS=THEIRS, each of ours once: prompt=question")
        mapping[ours] = theirs
    return Source(path="-", columns=mapping, ignore=tuple(ignore or ())) if mapping or ignore else None
