"""What a machine holds of a recipe: settings of memory for it, and how much its stages take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from data.common.number_format import size
from models.backbone.device_memory import USABLE, parse_size
from models.backbone.four_bits import can_quantize
from pipelines.execution.sharding import ROOM
from pipelines.init.machines import Machine
from pipelines.init.text import Line
from pipelines.run.fit import Fit, needed, with_settings
from pipelines.run.plan_details import PlanDetails
from pipelines.stages.memory import Numbers, base_bytes

BF16 = 2  # bytes a number
QUANTIZE, SHARDING = "runtime.quantize", "runtime.sharding"


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Lines of the recipe's ``runtime``, sentences above them, and what does not fit, in a sentence or ''."""

    lines: tuple[Line, ...]
    about: tuple[str, ...]
    too_large: str = ""


def memory_on(machine: Machine, details: PlanDetails) -> Memory:
    """Settings with which a recipe's stages fit a machine.

    Args:
        machine: where it is to run.
        details: of the recipe as it is so far.
    """
    return _on_cards(machine, details) if machine.cards else _on_cpu(machine, details)


def _on_cpu(machine: Machine, details: PlanDetails) -> Memory:
    lines = () if machine.here else (Line(key="device", value="cpu", why="also where there is a GPU"),)
    fit = replace(details.fit, four_bits=False)
    if _unknown(fit):
        return Memory(lines=lines, about=(_not_here(details),))
    if not any(details.too_large(name) for name in fit.stages):
        settled = {name: fit.settled(name) for name in fit.stages}
        return Memory(lines=lines, about=(_peak(fit, settled),))
    found = fit.best()
    if found.misfits:
        return Memory(lines=lines, about=(), too_large=_too_large(fit, found.misfits))
    fitting = Line(key="fit", value="auto", why="micro-batches are chosen to fit the memory")
    return Memory(lines=(*lines, fitting), about=(_peak(fit, dict.fromkeys(fit.stages, found.settings)),))


def _on_cards(machine: Machine, details: PlanDetails) -> Memory:
    lines = [Line(key="fit", value=machine.fit, why="micro-batches are chosen to fit a card")]
    if not machine.here:  # where auto is what the card takes
        lines.insert(0, Line(key="dtype", value="bfloat16", why="of the frozen base; adapters and heads stay in fp32"))
    about = [] if machine.cards == 1 else [started_by(machine)]
    settings: dict[str, Any] = {"runtime.fit": machine.memory, SHARDING: "none"}
    settings |= {} if machine.here else {"runtime.dtype": "bfloat16"}
    whole = None if details.shape is None else base_bytes(details.shape, Numbers(weight=BF16))
    if machine.cards > 1 and whole is not None and whole > ROOM * USABLE * parse_size(machine.memory, "--for"):
        settings[SHARDING] = "fsdp2"
        lines.append(
            Line(key="sharding", value="fsdp2", why=f"one card does not hold the base ({size(whole)}): each has a part")
        )
        about.append("A plan in one process counts the whole base, and says that it does not fit.")
    on_cards = replace(
        details,
        recipe=with_settings(details.recipe, settings),
        device=torch.device("cuda"),
        processes=machine.cards,
    )
    whole_base = settings[SHARDING] == "none"
    fit = replace(on_cards.fit, four_bits=whole_base and can_quantize())
    if _unknown(fit):
        return Memory(lines=tuple(lines), about=(*about, _not_here(details)))
    found = fit.best()
    if found.misfits:
        packed = replace(fit, four_bits=whole_base).best()
        more = "; with runtime.quantize nf4 it would fit: pip install 'trivet[nf4]'" if not packed.misfits else ""
        return Memory(lines=tuple(lines), about=tuple(about), too_large=_too_large(fit, found.misfits) + more)
    if QUANTIZE in found.settings:
        lines.append(Line(key="quantize", value="nf4", why="in bf16 the stages do not fit the card"))
    chosen = ", ".join(f"{key} {_word(v)}" for key, v in found.settings.items() if key != QUANTIZE)
    about.append(_peak(fit, dict.fromkeys(fit.stages, found.settings)) + (f" with {chosen}" if chosen else ""))
    return Memory(lines=tuple(lines), about=tuple(about))


def started_by(machine: Machine) -> str:
    """How a recipe is started on several cards."""
    return f"Start it on all cards: accelerate launch --num_processes {machine.cards} --no_python trivet run RECIPE"


def _unknown(fit: Fit) -> bool:
    return any(fit.takes(name, {}).parts is None for name in fit.stages)


def _not_here(details: PlanDetails) -> str:
    return (
        f"Base {details.recipe.base} is not on this machine, so what its stages take is not known yet; once it is, "
        "`trivet plan` says it"
    )


def _peak(fit: Fit, settings: Mapping[str, Mapping[str, Any]]) -> str:
    """The stage that takes the most memory, in a sentence."""
    takes = {name: fit.takes(name, settings[name]).parts for name in fit.stages}
    bytes_of = {name: needed(parts) for name, parts in takes.items() if parts is not None}
    if not bytes_of:
        return ""
    largest = max(bytes_of, key=lambda name: bytes_of[name])
    return f"Memory: at most about {size(bytes_of[largest])} ({largest}), of {size(fit.limit)} that can be used"


def _too_large(fit: Fit, misfits: tuple[str, ...]) -> str:
    return (
        f"{', '.join(misfits)}: no setting of memory makes this fit into {size(fit.limit)}; take a smaller base, "
        "shorter texts, or several cards"
    )


def _word(found: Any) -> str:
    return str(found).lower() if isinstance(found, bool) else str(found)
