"""Locks of files between processes. They go with the process that holds them, however it ends."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO, Any

from data.common.errors import UserError


def lock(file: IO[Any], *, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file until it is closed; False where another process holds it.

    Args:
        file: what is locked; its name is in the error.
        shared: with others that share it.
        wait: for as long as another process holds it.

    Raises:
        UserError: the file system has no locks, which says nothing of other processes.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(
            f"{Path(file.name).parent}: files cannot be locked on this file system ({error.strerror}), by which "
            "processes are kept from writing the same files at once; choose a folder elsewhere, or mount it with locks"
        ) from error
    return True
