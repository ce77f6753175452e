"""A frozen base that several processes hold in parts: torch's FSDP2 divides it, layer by layer, and gathers a layer
where it is computed with.

Adapters and heads are whole in every process. FSDP's own rule, that all processes run the same passes in the same
order, does not hold here: shares of rows differ, and so do the tokens that are sampled and the halvings after memory
has run out. So a process that needs a layer asks for it, and each of the others takes part in gathering it at the next
place where it exchanges anything: where it needs a layer itself, or waits for the others with a collective.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from data.common.errors import UserError


class Gathers:
    """What the processes ask each other for; one for each process, and for all of its bases.

    Args:
        group: the processes, for numbers on the host; None: torch's own group of all.
    """

    def __init__(self, group: Any = None) -> None:
        self.group = group
        self.units: list[Any] = []  # None: given up; the others may need one that this process has done with
        self.trained: dict[int, Any] = {}  # by number, whose gradients are added up as well
        self.given_up: list[int] = []
        self.serving: int | None = None  # the unit that is gathered now because somebody asked for it

    def add(self, unit: Any, trained: Any = None) -> int:
        """A part of a base that is gathered as one, the same and in the same order in all processes; its number.

        ``trained``: takes part in adding its gradients up, by ``reduce_for_others(number)``.
        """
        self.units.append(unit)
        number = len(self.units) - 1
        if trained is not None:
            self.trained[number] = trained
        return number

    def meet(self) -> None:
        """Take part in gathering what others need, until none of the processes needs any more.

        Called before each other collective: so all processes are at the same one when it begins.
        """
        while self.units and (asked := self._asked_for()):
            for number in asked:
                self._serve(number)
        while self.given_up:  # by all processes: they have come to the same place
            number = self.given_up.pop()
            self.units[number] = None
            self.trained.pop(number, None)

    def gather(self, number: int, output: Tensor, own: Tensor, group: Any) -> None:
        """Fill ``output`` with all processes' parts of a unit; the others take part, wherever they are."""
        if self.serving == number:  # all processes are at it
            torch.distributed.all_gather_single(output, own, group=group)
            return
        for asked in self._asked_for(number):
            if asked == number:
                torch.distributed.all_gather_single(output, own, group=group)
            else:
                self._serve(asked)

    def reduce(self, number: int, send: Callable[[], None]) -> None:
        """``send`` this process's gradients of a unit; the others take part, wherever they are."""
        wanted = len(self.units) + number
        for asked in self._asked_for(wanted):
            if asked == wanted:
                send()
            else:
                self._serve(asked)

    def _asked_for(self, number: int | None = None) -> list[int]:
        """The units that any process needs, in order, and behind their numbers those whose gradients it has; ``number``
        is this process's."""
        needs = torch.zeros(2 * len(self.units), dtype=torch.int32)
        if number is not None:
            needs[number] = 1
        torch.distributed.all_reduce(needs, group=self.group)
        return [int(i) for i in needs.nonzero().flatten()]

    def _serve(self, number: int) -> None:
        """Gather a unit for others, which stays whole here only where it was; or add its gradients up with them."""
        if number >= len(self.units):
            return self.trained[number - len(self.units)].reduce_for_others(number - len(self.units))
        unit = self.units[number]
        before, whole = self.serving, is_whole(unit)
        if whole:
            unit.reshard()
        self.serving = number
        try:
            unit.unshard()
        finally:
            self.serving = before
        if not whole:
            unit.reshard()


class _AllGather:
    """How FSDP gathers one unit (its ``AllGather``)."""

    def __init__(self, gathers: Gathers, number: int) -> None:
        self.gathers, self.number = gathers, number

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> None:
        self.gathers.gather(self.number, output_tensor, input_tensor, group)


class Shards:
    """What a divided causal LM has beside its modules, as ``lm.shards``.

    Args:
        lm: divided by ``fully_shard``, and not yet computed with.
        gathers: of this process.
        processes: that hold it.
    """

    def __init__(self, lm: Any, gathers: Gathers, processes: Any = None) -> None:
        from torch.distributed.fsdp import FSDPModule

        self.gathers, self.processes, self.root = gathers, processes, weakref.ref(lm)
        self.group = next(p.device_mesh.get_group() for p in lm.parameters() if is_part(p))
        output = lm.get_output_embeddings()
        self.output_unit = weakref.ref(output if isinstance(output, FSDPModule) else lm)  # a tied one is the root's own
        self.numbers: list[int] = []
        for unit in lm.modules():
            if isinstance(unit, FSDPModule):
                self.numbers.append(gathers.add(unit, self.trains))
                self._connect(unit, self.numbers[-1])
        _LIVE.add(self)

    @property
    def trains(self) -> Any:
        """What adds gradients up; None: nothing is trained."""
        return None

    def _connect(self, unit: Any, number: int) -> None:
        """Let a unit be gathered by number."""
        unit.set_custom_all_gather(_AllGather(self.gathers, number))
        unit.set_reshard_after_forward(True, recurse=False)
        unit.set_modules_to_backward_prefetch([unit])  # nothing is gathered that is not needed now

    @contextlib.contextmanager
    def output_layer(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Weight (V, D) and bias (V,) of the output layer, whole while the block runs."""
        lm: Any = self.root()
        unit: Any = self.output_unit()
        assert lm is not None and unit is not None
        held = is_whole(unit)
        if not held:
            unit.unshard()
        try:
            output = lm.get_output_embeddings()
            yield output.weight, output.bias
        finally:
            if not held:
                unit.reshard()

    def logits(self, hidden: Tensor) -> Tensor:
        """The product (..., V) of states (..., D) with the output layer, whose gradient asks for it again."""
        return _Product.apply(hidden, self)

    def give_up(self) -> None:
        """Let the weights go as soon as no process can need them."""
        self.gathers.given_up += self.numbers

    def reset(self) -> None:
        """Forget a pass that was broken off; what it had gathered is given back."""
        lm = self.root()
        if lm is not None:
            lm.reset_iter_state()


_LIVE: weakref.WeakSet[Shards] = weakref.WeakSet()


def reset_after_failure() -> None:
    """Give back what passes that raised an error have gathered, so that the next ones begin anew."""
    for shards in list(_LIVE):
        shards.reset()


class _Product(torch.autograd.Function):
    """The output layer, frozen: gathered for the product, and again for its gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, shards: Shards) -> Tensor:  # type: ignore[override]
        ctx.shards, ctx.dtype = shards, hidden.dtype
        with shards.output_layer() as (weight, bias):
            return F.linear(hidden.to(weight.dtype), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_logits: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        with ctx.shards.output_layer() as (weight, _):
            return (by_logits @ weight).to(ctx.dtype), None


def shards_of(lm: Any) -> Shards | None:
    """What a divided base has; None of one that this process holds whole."""
    found: Shards | None = getattr(lm, "shards", None)
    return found


def output_held(lm: Any) -> contextlib.AbstractContextManager[Any]:
    """The output layer of a divided base stays whole while the block runs, which uses it several times."""
    shards = shards_of(lm)
    return contextlib.nullcontext() if shards is None else shards.output_layer()


def is_part(tensor: Tensor) -> bool:
    """Whether a tensor is this process's part of one."""
    return hasattr(tensor, "full_tensor")


def is_whole(unit: nn.Module) -> bool:
    """Whether a unit is gathered here now."""
    return not any(is_part(p) for p in _own_parameters(unit))


def _own_parameters(unit: nn.Module) -> Iterator[Tensor]:
    """Parameters of a unit without those of units inside it."""
    from torch.distributed.fsdp import FSDPModule

    yield from unit.parameters(recurse=False)
    for child in unit.children():
        if not isinstance(child, FSDPModule):
            yield from _own_parameters(child)


def wait_for_passes(lm: Any) -> None:
    """Wait until no process needs a layer of a divided base any more; all processes call this at the same place."""
    shards = shards_of(lm)
    if shards is not None:
        shards.gathers.meet()


def whole_of(tensor: Tensor) -> Tensor:
    """A tensor as one process would have it; all processes call this for the same ones, in the same order."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


NEEDED = {
    "torch": (
        ("torch.distributed", "all_gather_single", "reduce_scatter_single"),
        (
            *("torch.distributed.fsdp:FSDPModule", "reset_iter_state", "set_custom_all_gather"),
            *("set_custom_reduce_scatter", "set_reduce_scatter_unused_params", "set_force_sum_reduction_for_comms"),
        ),
    ),
    "transformers": (("transformers.distributed:DistributedConfig", "fsdp_size", "fsdp_plan"),),
}
"""What dividing a base calls, by package: a module or a class, and the names in it."""
TESTED = {"torch": "2.13", "transformers": "5.23"}


def check_libraries() -> None:
    """Refuse libraries that lack what dividing a base needs, before anything is loaded.

    Raises:
        UserError: names the first that is missing, and the version that has it.
    """
    for package, places in NEEDED.items():
        lacking = next((name for place, *names in places for name in _lacking(place, names)), None)
        if lacking is not None:
            there = importlib.metadata.version(package)
            raise UserError(
                f"runtime.sharding: dividing a base needs {package} {TESTED[package]} or newer, and {there} is "
                f"installed, which lacks {lacking}: update it, or set runtime.sharding: none"
            )


def _lacking(place: str, names: Sequence[str]) -> Iterator[str]:
    """Those of the names that a module or a class does not have; its own where it is not there itself."""
    module, _, of = place.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ImportError:
        yield module
        return
    if of:
        found = getattr(found, of, None)
    known = getattr(found, "__dataclass_fields__", {})
    yield from (f"{of or module}.{name}" for name in names if not hasattr(found, name) and name not in known)


def check_output_layer(lm: Any, name: str) -> None:
    """Refuse an output layer that is more than a product.

    Raises:
        UserError: it is.
    """
    output = lm.get_output_embeddings()
    if not isinstance(output, nn.Linear):
        raise UserError(
            f"base {name}: its output layer is a {type(output).__name__}, which cannot be divided: "
            "set runtime.sharding: none"
        )


def check_shares(lm: Any, name: str, processes: int) -> None:
    """Refuse experts of which a process would have none: Transformers puts each process's own together as it reads.

    Raises:
        UserError: names the tensor, and a number of processes that fits.
    """

    def fits(count: int, rows: int) -> bool:
        return -(-rows // count) * (count - 1) < rows

    for tensor, p in lm.named_parameters():
        if p.ndim > 2 and not fits(processes, rows := p.shape[0]):
            fewer = next(n for n in range(processes - 1, 0, -1) if fits(n, rows))
            raise UserError(
                f"base {name}: {processes} processes cannot share the {rows} experts of {tensor}, since the last would "
                f"have none: start {fewer}, or set runtime.sharding: none"
            )


def unit_names(lm: Any) -> dict[str, str]:
    """Transformers' plan of what FSDP gathers as one: each block, embeddings, output layer, and what else has weights.

    Args:
        lm: without weights.

    Returns:
        Names of modules, with ``*`` for numbers, and FSDP's style for each.
    """
    embeddings, output = lm.get_input_embeddings(), lm.get_output_embeddings()
    names = list(_units("", lm, {id(embeddings), id(output)}))
    plan = {".".join("*" if part.isdigit() else part for part in name.split(".")): "free_full_weight" for name in names}
    if getattr(lm, "all_tied_weights_keys", None):  # Transformers puts the matrix where the embeddings are
        plan[next(name for name, module in lm.named_modules() if module is output)] = "keep_full_weight"
    return plan


def _units(name: str, module: nn.Module, alone: set[int]) -> Iterator[str]:
    """The largest modules inside without lists of blocks or ``alone`` in them, and these."""
    if not any(True for _ in module.parameters()):
        return
    inside = [m for m in module.modules() if m is not module]
    divided = any(isinstance(m, nn.ModuleList) or id(m) in alone for m in inside)
    if name and (id(module) in alone or not (divided or isinstance(module, nn.ModuleList))):
        yield name
        return
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        if isinstance(module, nn.ModuleList):
            yield path
        else:
            yield from _units(path, child, alone)
    if name and any(True for _ in module.parameters(recurse=False)):
        yield name
