"""What all pages of a server share."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from pipelines.ui.children import Children


@dataclass
class State:
    """What all pages of a server share."""

    children: Children = field(default_factory=Children)
    talk: Any = None  # the conversation whose models are loaded
    talking: threading.Lock = field(default_factory=threading.Lock)
