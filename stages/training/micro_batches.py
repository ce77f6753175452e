"""Batches of the trainers cut into pieces, whose gradients add up to the whole batch's."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

Batch = dict[str, Tensor]


def of_rows(inputs: Batch, parts: Sequence[Sequence[int]]) -> list[Batch]:
    """Rows of a right-padded batch by their numbers; padding is cut to what each part needs."""
    lengths = inputs["attention_mask"].sum(1).tolist()
    return [{k: v[list(rows), : max(lengths[r] for r in rows)] for k, v in inputs.items()} for rows in parts]


def of_rankings(inputs: Batch, size: int) -> list[Batch]:
    """At most ``size`` rankings each, with all their answers; padding is cut to what each piece needs."""
    counts, out = inputs["present"].sum(1).tolist(), []
    for start in range(0, len(counts), size):
        chosen = slice(start, start + size)
        rows = slice(sum(counts[:start]), sum(counts[: start + size]))
        length, width = int(inputs["mask"][rows].sum(1).max()), max(counts[chosen])
        part = {k: inputs[k][rows, :length] for k in ("ids", "mask")}
        part |= {k: inputs[k][rows] for k in ("query_lengths", "response_lengths")}
        part |= {k: inputs[k][chosen, :width] for k in ("ranks", "present")}
        part |= {k: inputs[k][chosen] for k in ("labels", "weights")}
        if "margins" in inputs:
            part["margins"] = inputs["margins"][chosen, :width, :width]
        out.append(part)
    return out
