"""What the key of a stage holds besides its settings, and what is written next to it: how it was computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data.common.user_functions import fingerprint_of
from data.splits import Corpus
from pipelines.recipe.schema import Recipe, RuntimeConfig
from pipelines.stages.keys import base_key
from pipelines.stages.table import STAGES

if TYPE_CHECKING:
    from models.backbone.processes import Processes

CHECKPOINTING = "gradient_checkpointing"
OFFLOAD = "offload_activations"
RUNTIME_SPEED = ("rollouts", CHECKPOINTING, OFFLOAD, "fit")


def left_out_of_keys(runtime: RuntimeConfig) -> tuple[str, ...]:
    """Settings of the runtime that no key holds; nor that of bits where nothing is quantised."""
    return (*RUNTIME_SPEED, *(() if runtime.quantize else ("quantize",)))


@dataclass(frozen=True, slots=True)
class Here:
    """What computes: changes of it change rounding alone.

    Attributes:
        threads: CPU threads of this process.
        processes: that work together; where random masks depend on their number, a key holds it instead.
        processor: the CPU's instruction set, or the GPU's name; empty where it is not known.
    """

    threads: int
    processes: int = 1
    processor: str = ""

    @classmethod
    def of(cls, processes: Processes) -> Here:
        """This process and those that it works with."""
        return cls(processes.threads, processes.world_size, processes.processor)


def made_with(recipe: Recipe, name: str, here: Here) -> dict[str, Any]:
    """How a stage is computed, as far as that changes rounding alone: written down, and in no key."""
    stage = STAGES[name]
    own = {f"{stage.group}.{s}": getattr(getattr(recipe, stage.group), s) for s in stage.speed_settings(recipe)}
    general = {f"runtime.{CHECKPOINTING}": getattr(recipe.runtime, CHECKPOINTING)}
    general |= {f"runtime.{OFFLOAD}": True} if recipe.runtime.offload_activations else {}
    general |= {} if stage.samples_masks(recipe) else {"processes": here.processes}
    general |= {"processor": here.processor} if here.processor else {}
    return own | general | ({"threads": here.threads} if recipe.runtime.threads is None else {})


def without_speed(described: Mapping[str, Any], recipe: Recipe, name: str) -> dict[str, Any]:
    """A stage's description as it was written before those settings left the keys, without them."""
    out, stage = dict(described), STAGES[name]
    settings = out.get("settings")
    if isinstance(settings, Mapping):
        left_out = stage.speed_settings(recipe)
        out["settings"] = {k: v for k, v in settings.items() if k not in left_out}
        if isinstance(inner := settings.get(stage.group), Mapping):
            out["settings"][stage.group] = {k: v for k, v in inner.items() if k not in left_out}
    if isinstance(out.get("runtime"), Mapping):
        left_out = (*RUNTIME_SPEED, *(() if stage.samples_masks(recipe) else ("processes",)))
        out["runtime"] = {k: v for k, v in out["runtime"].items() if k not in left_out}
    return out


def functions_in_key(recipe: Recipe, name: str, corpus: Corpus) -> dict[str, Any]:
    """Fingerprints of a stage's functions and, where it has any, of the data's other columns that they are given."""
    found = {source: fingerprint_of(source, recipe.base_dir) for source in STAGES[name].functions(recipe)}
    out = {"functions": found} | ({"columns": corpus.columns_fingerprint("prompts")} if found else {})
    ready = {source: base_key(source, recipe.base_dir) for source in STAGES[name].classifiers(recipe)}
    return out | ({"classifiers": ready} if ready else {})
