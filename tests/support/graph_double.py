"""CUDA graphs on the double of a GPU: what is captured is not carried out, and repeats on the same memory."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_leaves


def place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class CUDAGraph:
    """Operations on tensors as they were captured.

    Attributes:
        replays: how often it was launched.
    """

    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []
        self.own: set[int] = set()  # memory that was allocated within
        self.before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # what the capture itself must not change
        self.replays = 0

    def add(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Carry an operation out for the shapes of its results, and keep it with what it writes over."""
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        for argument in func._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.keep(kwargs[argument.name] if argument.kwarg_only else args[0])
        out = func(*args, **kwargs)
        results = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.own |= {place(t) for t in results} - {place(t) for t in given}
        self.operations.append((func, args, kwargs, results))
        return out

    def keep(self, written: torch.Tensor) -> None:
        if place(written) not in self.own and place(written) not in self.before:
            whole = torch.empty(0, dtype=written.dtype).set_(written.untyped_storage())
            self.before[place(written)] = (whole, whole.clone())

    def replay(self) -> None:
        self.replays += 1
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
            for func, args, kwargs, results in self.operations:
                made = [t for t in tree_leaves(func(*args, **kwargs)) if isinstance(t, torch.Tensor)]
                for into, new in zip(results, made, strict=True):
                    if place(into) != place(new):
                        into.copy_(new)


class Capture:
    """``torch.cuda.graph`` of a double: between enter and exit operations are captured."""

    def __init__(self, double: Any, graph: CUDAGraph, **_: Any) -> None:
        self.double, self.graph = double, graph

    def __enter__(self) -> None:
        self.double.capturing = self.graph

    def __exit__(self, *error: Any) -> None:
        self.double.capturing = None
        for whole, before in self.graph.before.values():
            whole.copy_(before)
