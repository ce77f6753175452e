"""The base-model registry, the shared base with its roles, log-probabilities, sampling, artifacts.

Names are imported when they are asked for: the registry needs no torch.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


_DATA = importlib.util.find_spec("data")
_PLACE = Path(_DATA.origin or next(iter(_DATA.submodule_search_locations or ("data",)))) if _DATA else Path("data")
if _DATA and _PLACE.resolve() != Path(__file__).resolve().parents[1] / "data" / "__init__.py":
    raise ImportError(
        f"{_PLACE} hides trivet's package 'data': Python finds it first. Rename it, or start the script from another "
        "folder.",
        name="models",
    )


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'models' has no attribute '{name}'")
