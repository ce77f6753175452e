"""Whether a base knows its stop token: one that was never trained cannot be learnt by adapters, and nothing would end.

What was never trained shares its embedding with other tokens that were not, to the last digits: its logit is theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError

from models.backbone.tensor_files import read_rows, shapes_of
from models.hub.download import local_folder
from models.hub.registry import resolve_base
from models.hub.validate import weight_files
from pipelines.init.text import Line
from pipelines.run.plan_details import PlanDetails

OUTPUT = ("lm_head.weight", "embed_out.weight", "embed_tokens.weight", "wte.weight", "embed_in.weight")
"""Ends of the names of matrices that logits are made with, the output layer's own before the input embeddings."""
SAMPLE = 256  # rows that one is compared with, besides those of special tokens
SAME = 0.999  # cosine of two rows


def stop_line(details: PlanDetails) -> Line | None:
    """The stop token to name where the one that responses end with was never trained.

    That is another one of the base's own that was; where there is none, the line says so and names nothing. None where
    all is well, or the base is not on this machine.
    """
    base, recipe = details.opened, details.recipe
    if base is None or not isinstance(recipe.base, str):
        return None
    spec = resolve_base(recipe.base, base_dir=recipe.base_dir)
    folder = local_folder(spec.source, spec.revision)
    stops, tokenizer = base.renderer.stop_ids, base.renderer.tokenizer
    if folder is None or not (same := untrained(folder, stops, tokenizer.all_special_ids)) or stops[0] not in same:
        return None
    name = tokenizer.convert_ids_to_tokens(stops[0])
    why = f"the base was never trained on its stop token {name}, which adapters cannot make up for"
    others = [i for i in stops if i not in same]
    if not others:
        return Line(key="stop", value=[], why=f"{why}: name one that it was trained with", written=False)
    return Line(key="stop", value=[tokenizer.convert_ids_to_tokens(others[0])], why=why)


def untrained(folder: Path, ids: Sequence[int], special: Sequence[int]) -> set[int]:
    """Those of some ids whose output embedding other tokens share.

    Args:
        folder: of a base.
        ids: of tokens.
        special: further ids to compare with, besides a sample.
    """
    rows = _rows(folder, sorted({*ids, *special}))
    if rows is None:
        return set()
    known, matrix = rows
    unit = torch.nn.functional.normalize(matrix.float(), dim=1)
    length = matrix.float().norm(dim=1)
    shared = (unit @ unit.T > SAME).sum(1) - 1
    return {i for i in ids if i in known and length[known[i]] > 0 and shared[known[i]] > 0}


def _rows(folder: Path, ids: Sequence[int]) -> tuple[dict[int, int], torch.Tensor] | None:
    """Rows of the output layer by id, a sample of the others among them; None where no file has it."""
    try:
        for end in OUTPUT:
            for file in weight_files(folder):
                for name, shape in shapes_of(file).items():
                    if name.endswith(end) and len(shape) == 2:
                        count = shape[0]
                        wanted = sorted({i for i in ids if i < count} | {*range(0, count, max(1, count // SAMPLE))})
                        return {token: place for place, token in enumerate(wanted)}, read_rows(file, name, wanted)
    except (SafetensorError, OSError):  # whoever loads the base says what is wrong
        return None
    return None
