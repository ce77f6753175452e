"""Gradients of micro-batches added up, on a CPU in float64, over processes too: neither order nor grouping leaves a
trace.

Sums in fp32 differ in their last places with the process that has a micro-batch, and Adam divides by the size of a
gradient: where that is next to nothing, its last places decide the step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from models.backbone.processes import Processes
from models.backbone.trained_shards import owners, shards_of_rows


class Reached:
    """Which of the trained tensors any step has had a gradient of.

    A tensor without one stays as it began, and no optimizer says so: an expert that no token was sent to, a layer whose
    output only chooses what others compute with.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.all = list(parameters)
        self.without, self.steps = list(self.all), 0

    def note(self) -> None:
        """A step's gradients are where the optimizer finds them."""
        self.steps += 1
        self.without = [p for p in self.without if p.grad is None]

    def warning(self, named: Mapping[str, nn.Parameter]) -> str:
        """A sentence on those without any, by their names; empty where there are none."""
        found = {id(p) for p in self.without}
        names = [name for name, p in named.items() if id(p) in found]
        if not names or not self.steps:
            return ""
        return (
            f"{len(names)} of {len(named)} trained tensors had no gradient in {self.steps} steps and are as they were, "
            f"for nothing that is learnt from depends on them (first: {names[0]})"
        )


LARGEST = 2**26
"""Weights at most whose sums are kept in float64, half a gigabyte; the gradients of more add up as they are."""


class GradientSums:
    """The gradient of one optimizer step after another.

    Args:
        parameters: what is trained; those that ask for no gradient are left alone.
        processes: that share the micro-batches of a step.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], processes: Processes) -> None:
        self.parameters, self.processes = [p for p in parameters if p.requires_grad], processes
        # a GPU, whose kernels are rarely the same in two batches anyway, computes float64 slowly
        on_cpu = all(p.device.type == "cpu" for p in self.parameters)
        few = sum(p.numel() for p in self.parameters) <= LARGEST
        self.small = on_cpu and few and not owners(self.parameters)  # parts are added up layer by layer, in fp32
        self.wide = False
        self._sums: dict[int, Tensor] = {}
        self.reached = Reached(self.parameters)

    def begin(self, micro_batches: int) -> None:
        """A step begins, or begins again, with so many micro-batches over all processes; one alone is no sum."""
        self.wide, self._sums = self.small and micro_batches > 1, {}

    def add(self) -> None:
        """Take the gradients of one micro-batch of this process from the parameters."""
        for p in self.parameters if self.wide else ():
            if p.grad is not None:
                known = self._sums.get(id(p))
                self._sums[id(p)] = p.grad.double() if known is None else known.add_(p.grad)
                p.grad = None

    def finish(self) -> None:
        """Put the sums over micro-batches and processes where the optimizer finds them; all processes call it."""
        if self.wide:
            own, self._sums = [self._sums.get(id(p)) for p in self.parameters], {}
            totals = self.processes.sum_known(own, self.parameters, torch.float64)
            for p, total in zip(self.parameters, totals, strict=True):
                p.grad = None if total is None else total.to(p.dtype)
        else:
            summed(self.parameters, self.processes)
        self.reached.note()


def summed(parameters: Sequence[nn.Parameter], processes: Processes) -> None:
    """Sums over processes of gradients as they are; all processes call it."""
    for shards in owners(parameters):
        shards.take_gradients()
    processes.sum_gradients([p for p in parameters if shards_of_rows(p) is None])


LARGEST_IN_ORDER = 2**24
"""Numbers at most in the gradients of all micro-batches of a step that are sent one by one: 64 MB of fp32."""


class OrderedSums:
    """Gradients of micro-batches that were dealt out to processes, added up in fp32 in the order of one process.

    One process adds each micro-batch's gradient to those before it. On a CPU, where few numbers have to travel for it,
    several do the same, so that their sum has the bits of one process. Elsewhere each process adds up its own, and the
    processes' sums are added in one message.

    Args:
        parameters: what is trained, in fp32.
        processes: that share the micro-batches (``Processes.dealt``).
    """

    def __init__(self, parameters: Iterable[nn.Parameter], processes: Processes) -> None:
        self.parameters, self.processes = list(parameters), processes
        self.size = sum(p.numel() for p in self.parameters)
        self.on_cpu = all(p.device.type == "cpu" for p in self.parameters)
        self.in_order = False
        self._own: list[Tensor] = []
        self.reached = Reached(self.parameters)

    def begin(self, micro_batches: int) -> None:
        """A step begins, or begins again, with so many micro-batches over all processes; all of them say the same."""
        few = micro_batches * self.size <= LARGEST_IN_ORDER
        several = self.processes.world_size > 1 and not owners(self.parameters)
        self.in_order, self._own = several and self.on_cpu and few, []

    def add(self) -> None:
        """Take the gradients of one micro-batch of this process from the parameters."""
        if not self.in_order:
            return
        known = torch.tensor([float(p.grad is not None) for p in self.parameters])
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        self._own.append(torch.cat([*(g.flatten() for g in grads), known]))
        for p in self.parameters:
            p.grad = None

    def finish(self) -> None:
        """Put the sums over micro-batches and processes where the optimizer finds them; all processes call it."""
        if self.in_order:
            self._finish_in_order()
        else:
            summed(self.parameters, self.processes)
        self.reached.note()

    def _finish_in_order(self) -> None:
        none = torch.zeros((0, self.size + len(self.parameters)))
        each = self.processes.gather_dealt(torch.stack(self._own) if self._own else none)
        self._own = []
        total = torch.zeros(each.shape[1]) if not len(each) else each[0].clone()
        for row in each[1:]:
            total += row
        *sums, known = total.split([*(p.numel() for p in self.parameters), len(self.parameters)])
        for p, own, count in zip(self.parameters, sums, known.tolist(), strict=True):
            p.grad = own.view_as(p).clone() if count else None
