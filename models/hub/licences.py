"""The licence of a base, where its entry in the catalogue or its own model card says one; nothing is ever guessed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from models.hub.catalogue import GEMMA, LLAMA_31, LLAMA_32
from models.hub.download import local_folder
from models.hub.spec import BaseModelSpec

CARD = "README.md"
UNSTATED = BaseModelSpec.model_fields["licence"].default
HUB_NAMES = {"Apache-2.0": "apache-2.0", "MIT": "mit", LLAMA_31: "llama3.1", LLAMA_32: "llama3.2", GEMMA: "gemma"}
"""The catalogue's licences that have an identifier on the hub."""


@dataclass(frozen=True, slots=True)
class Licence:
    """A licence: in words, its identifier on the hub, a name where that is ``other``, and who says so."""

    text: str
    hub_id: str
    name: str | None
    said_by: str


def licence_of(spec: BaseModelSpec) -> Licence | None:
    """The licence of a base by its entry, else by the card in its folder or cache; None: not known."""
    if spec.licence != UNSTATED:
        known = HUB_NAMES.get(spec.licence)
        name = None if known else re.sub(r"[^a-z0-9.]+", "-", spec.licence.lower()).strip("-")
        return Licence(spec.licence, known or "other", name, "the entry of the base")
    folder = local_folder(spec.source, spec.revision)
    file = None if folder is None else folder / CARD
    return _of_card(file) if file is not None and file.is_file() else None


def _of_card(file: Path) -> Licence | None:
    """What the front matter of a model card says; None where it says nothing that can be read."""
    from huggingface_hub import ModelCard

    try:
        data = ModelCard(file.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
    except Exception:  # a card of somebody's that is no YAML says nothing
        return None
    found, name = data.get("license"), data.get("license_name")
    if not isinstance(found, str) or not found:
        return None
    text = name if isinstance(name, str) and found == "other" else found
    return Licence(text, found, name if isinstance(name, str) else None, "the base's model card")
