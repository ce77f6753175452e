"""The machines that a recipe can be written for, by the name that ``trivet init --for`` takes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from data.common.errors import UserError

COMMON = ("here", "cpu", "24gb", "80gb", "8x80gb")
"""Names that help and messages show; any number of cards of any size is understood."""
NAME = re.compile(r"(?:(\d{1,4})x)?(\d{1,4})g(?:i?b)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where a recipe is to run.

    Attributes:
        title: in words.
        cards: GPUs; 0 for a CPU.
        fit: what ``runtime.fit`` says of a card's memory; '' for a CPU.
        memory: the size of a card that plans count with, as ``runtime.fit`` takes it; '' for a CPU.
        here: whether it is this machine, so that its own memory and time are known.
    """

    title: str
    cards: int = 0
    fit: str = ""
    memory: str = ""
    here: bool = False


def machine_of(name: str) -> Machine:
    """The machine of a name such as ``here``, ``cpu``, ``24gb`` or ``8x80gb``.

    Raises:
        UserError: it is none.
    """
    asked = name.strip().lower()
    if asked == "here":
        return _this_machine()
    if asked == "cpu":
        return Machine(title="a CPU")
    found = NAME.fullmatch(asked)
    cards, size = (int(found[1] or 1), int(found[2])) if found else (0, 0)
    if not cards or not size:
        raise UserError(
            f"--for {name}: is no machine: write {', '.join(COMMON[:-1])} or {COMMON[-1]} (cards x memory of one)"
        )
    title = f"one GPU of {size} GB" if cards == 1 else f"{cards} GPUs of {size} GB"
    return Machine(title=title, cards=cards, fit=f"{size}GB", memory=f"{size}GB")


def _this_machine() -> Machine:
    import torch

    from models.backbone.device_memory import device_memory

    if not torch.cuda.is_available():
        return Machine(title="this machine's CPU", here=True)
    cards, memory = torch.cuda.device_count(), device_memory(torch.device("cuda"))
    title = f"this machine's GPU of {memory / 1e9:.0f} GB" if cards == 1 else f"this machine's {cards} GPUs"
    return Machine(title=title, cards=cards, fit="auto", memory=f"{memory}B", here=True)
