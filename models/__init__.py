"""The base-model registry, the shared base with its roles, log-probabilities, sampling, artifacts.

Names are imported when they are asked for: the registry needs no torch.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from trivet_names import refuse_clashes

if TYPE_CHECKING:
    from models.backbone.settings import AdapterConfig
    from models.hub.registry import BASE_MODELS, BaseModelSpec
    from models.roles.shared_base import SharedBase

__all__ = ["BASE_MODELS", "AdapterConfig", "BaseModelSpec", "SharedBase"]
_HOMES = {
    "BASE_MODELS": "models.hub.registry",
    "BaseModelSpec": "models.hub.registry",
    "AdapterConfig": "models.backbone.settings",
    "SharedBase": "models.roles.shared_base",
}

refuse_clashes("models", ("data",))
# PEFT imports it, and on some processors it misses a kernel that nothing here calls
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'models' has no attribute '{name}'")
