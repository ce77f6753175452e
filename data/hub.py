"""Data sets of the hub, streamed where they can be: rows as they come, without a copy of the whole on this machine."""

from __future__ import annotations

import os
import re
import socket
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from data.common.errors import UserError
from data.readers.rows import Raw
from data.source_settings import Source

HUB_ID = re.compile(r"(hub:)?(?P<id>[\w.-]+/[\w.-]+)(:(?P<split>[\w.+-]+(\[.*\])?))?")


def read_hub(source: Source) -> Iterator[Raw]:
    """Yield (place, row) of a data set of the hub.

    Raises:
        UserError: it is no hub id, or cannot be reached.
    """
    found = HUB_ID.fullmatch(source.path)
    if found is None:
        raise UserError(f"{source.path!r} is no hub id: write 'hub:organisation/name' or 'hub:organisation/name:split'")
    if found["split"] and source.split:
        raise UserError(f"{source.path} names a split, and so does split: {source.split}; keep one of them")
    if not hub_is_known():
        raise UserError(
            f"{source.path} is no file, and there is no network to search the hub for it: give the path of a file "
            "(or set HF_HUB_OFFLINE=1 if the data set is in the local cache)"
        )
    split = found["split"] or source.split or "train"
    named = {"name": source.config, "data_dir": source.data_dir, "revision": source.revision}
    options: dict[str, Any] = {key: value for key, value in named.items() if value is not None}
    return _rows(source.path, found["id"], split, options)


def _rows(path: str, name: str, split: str, options: dict[str, Any]) -> Iterator[Raw]:
    import datasets

    # a slice of a split, and what lies in the cache of a machine without a network, cannot be streamed
    streaming = "[" not in split and not os.environ.get("HF_HUB_OFFLINE")
    number = 0
    try:
        for row in datasets.load_dataset(name, split=split, streaming=streaming, **options):
            number += 1
            yield f"{path}, row {number}", dict(row)
    except Exception as error:  # the hub's errors have no common class
        if isinstance(error, UserError):
            raise
        first = (str(error).splitlines() or [""])[0][:200]
        after = f"; it broke off after row {number}" if number else ""
        raise UserError(
            f"{path} is neither a file nor a hub data set that can be reached ({type(error).__name__}: {first}){after}"
            "; check the name and the network, or download it and give the path"
        ) from error


def hub_is_known() -> bool:
    """Whether the hub's name resolves: without a network its client retries for half a minute."""
    if os.environ.get("HF_HUB_OFFLINE") or urllib.request.getproxies():
        return True
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True
