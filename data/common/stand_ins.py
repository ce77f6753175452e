"""Files that stand in another's place: a pointer of Git LFS that was not followed, a web page that was saved instead.

Both have the name of what was wanted, so that a reader fails at something that says nothing of it.
"""

from __future__ import annotations

from pathlib import Path

from data.common.errors import UserError

POINTER = b"version https://git-lfs.github.com/spec/"
PAGES = (b"<!doctype html", b"<html", b"<?xml")
LONGEST = 256


def refuse_stand_in(path: Path, name: str) -> None:
    """Refuse a file that is none of its own; one that cannot be read is left to whoever reads it.

    Raises:
        UserError: it is a pointer of Git LFS, or begins as a web page or XML does.
    """
    try:
        with path.open("rb") as file:
            head = file.read(LONGEST)
    except OSError:
        return
    if head.startswith(POINTER):
        raise UserError(
            f"{name} is a pointer of Git LFS and not the file itself, which was not fetched: run `git lfs pull` in its "
            "folder, or fetch it again"
        )
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(PAGES):
        raise UserError(
            f"{name} is a web page (or XML), not what its name says: fetch the file itself; on the hub its address "
            "has /resolve/ where that of its page has /blob/"
        )
