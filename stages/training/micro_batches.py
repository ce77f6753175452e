"""Batches of the trainers cut into micro-batches, whose gradients add up to the whole batch's."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

Batch = dict[str, Tensor]


def of_rows(inputs: Batch, parts: Sequence[Sequence[int]]) -> list[Batch]:
    """Rows of a right-padded batch by their numbers; padding is cut to what each part needs."""
    lengths = inputs["attention_mask"].sum(1).tolist()
    return [{k: v[list(rows), : max(lengths[r] for r in rows)] for k, v in inputs.items()} for rows in parts]


def some_rankings(inputs: Batch, chosen: range) -> Batch:
    """Neighbouring rankings with all their responses; padding is cut to what they need."""
    counts = inputs["present"].sum(1).tolist()
    rankings = slice(chosen.start, chosen.stop)
    rows = slice(sum(counts[: chosen.start]), sum(counts[: chosen.stop]))
    length, width = int(inputs["mask"][rows].sum(1).max()), max(counts[rankings])
    part = {k: inputs[k][rows, :length] for k in ("ids", "mask")}
    part |= {k: inputs[k][rows] for k in ("query_lengths", "response_lengths")}
    part |= {k: inputs[k][rankings, :width] for k in ("ranks", "present")}
    part |= {k: inputs[k][rankings] for k in ("labels", "weights")}
    if "margins" in inputs:
        part["margins"] = inputs["margins"][rankings, :width, :width]
    return part


def of_rankings(inputs: Batch, size: int) -> list[Batch]:
    """At most ``size`` rankings each, with all their responses; padding is cut to what each of them needs."""
    count = len(inputs["present"])
    return [some_rankings(inputs, range(i, min(i + size, count))) for i in range(0, count, size)]
