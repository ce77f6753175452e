"""A model that is trained whole by several processes, each of which keeps a part of its fp32 weights, of their
gradients and of the optimizer's moments: torch's FSDP2 divides it as it divides a frozen base.

Processes run passes of different numbers here as well (``models.backbone.sharding``): one that has the gradients of a
layer asks for them to be added up, and each of the others takes part with zeros at the next place where it exchanges
anything. The optimizer sees each process's rows of every tensor as plain parameters, and those tensors that every
process has whole as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from data.common.errors import StageError
from models.backbone.sharding import Shards, is_part, is_whole, shards_of, whole_of


class TrainedShards(Shards):
    """What a divided model that is trained has beside its modules, as ``lm.shards``.

    Args:
        lm: divided by ``fully_shard``, and not yet computed with. A matrix that embeddings and output layer share is
            the root's. What is not divided is every process's own, and its gradients are summed as a head's are.
        processes: that hold it.
    """

    def __init__(self, lm: Any, processes: Any) -> None:
        self.unit_parameters: dict[int, list[Any]] = {}
        self.named: dict[str, Any] = dict(lm.requires_grad_(True).named_parameters())
        super().__init__(lm, processes.divide_bases(), processes)
        self.divided = {name: p for name, p in self.named.items() if is_part(p)}
        self.parameters = self.named | {name: self._own_rows(p) for name, p in self.divided.items()}
        output = lm.get_output_embeddings()
        self.of_output = [p for p in (output.weight, output.bias) if p is not None]
        self._sums: dict[int, Tensor] = {}  # this process's rows of gradients that others asked to add up
        self._of_output: list[Tensor | None] = [None] * len(self.of_output)  # whole gradients, of this process

    @property
    def trains(self) -> Any:
        """Itself: a divided model that is trained."""
        return self

    def _own_rows(self, parameter: Any) -> nn.Parameter:
        """This process's rows, in the same memory."""
        rows = nn.Parameter(parameter.detach().to_local())
        rows.trained_shards, rows.whole_shape = self, tuple(parameter.shape)  # type: ignore[attr-defined]
        return rows

    def _connect(self, unit: Any, number: int) -> None:
        super()._connect(unit, number)
        self.unit_parameters[number] = [p for p in _in_order(unit) if is_part(p)]
        unit.set_custom_reduce_scatter(_ReduceScatter(self, number))
        unit.set_gradient_divide_factor(1.0)  # sums: losses are divided by the counts of the whole batch
        unit.set_force_sum_reduction_for_comms(True)
        if unit is not self.output_unit():
            unit.set_reduce_scatter_unused_params(True)  # so that all processes send tensors of the same sizes

    # -- gradients -----------------------------------------------------------------------------------------------

    def sizes(self, number: int) -> int:
        """Numbers in the message of a unit's gradients, padded so that each process has as many."""
        return sum(_padded_rows(p, self.processes.world_size) * _row(p) for p in self.unit_parameters[number])

    def reduce_for_others(self, number: int) -> None:
        """Take part with zeros in adding up a unit's gradients, and keep this process's rows of the sum."""
        size = self.sizes(number)
        first = self.unit_parameters[number][0].to_local()
        given, output = first.new_zeros(size), first.new_empty(size // self.processes.world_size)
        torch.distributed.reduce_scatter_single(output, given, group=self.group)
        at = 0
        for p in self.unit_parameters[number]:
            rows, own = _padded_rows(p, self.processes.world_size) // self.processes.world_size, p.to_local()
            self._add(p, output[at : at + own.numel()].view(own.shape))
            at += rows * _row(p)

    def add_output(self, gradients: Sequence[Tensor | None]) -> None:
        """Add whole gradients of the output layer's tensors, of this process's rows; they are exchanged once a step."""
        for i, gradient in enumerate(gradients):
            known = self._of_output[i]
            self._of_output[i] = gradient if known is None else known if gradient is None else known.add_(gradient)

    def take_gradients(self) -> None:
        """Put the sums over processes where the optimizer finds them; all processes call it at the same place."""
        self.gathers.meet()
        if any(p.to_local().data_ptr() != self.parameters[name].data_ptr() for name, p in self.divided.items()):
            raise RuntimeError("a divided model was moved to other memory after its parameters were taken")
        there = torch.tensor([float(g is not None) for g in self._of_output])
        for i, known in enumerate(self.processes.sum(there).tolist()):
            if known:
                self._sum_output(i)
        for name, p in self.divided.items():
            own, mine = self._sums.pop(id(p), None), None if p.grad is None else p.grad.to_local()
            self.parameters[name].grad = mine if own is None else own if mine is None else own.add_(mine)
        self.drop()

    def _sum_output(self, i: int) -> None:
        p, mine = self.of_output[i], self._of_output[i]
        rows, count = _padded_rows(p, self.processes.world_size), self.processes.world_size
        own = p.to_local()
        given = own.new_zeros(rows, *p.shape[1:])
        if mine is not None:
            given[: len(mine)] = mine
        output = own.new_empty(rows // count, *p.shape[1:])
        torch.distributed.reduce_scatter_single(output, given, group=self.group)
        self._add(p, output[: len(own)])

    def _add(self, parameter: Any, rows: Tensor) -> None:
        known = self._sums.get(id(parameter))
        self._sums[id(parameter)] = rows.clone() if known is None else known.add_(rows)

    def reset(self) -> None:
        """Forget a pass that was broken off, with what it had added to the gradients of gathered tensors."""
        super().reset()
        for unit in (u for u in map(self.gathers.units.__getitem__, self.numbers) if u is not None):
            for group in unit._get_fsdp_state()._fsdp_param_groups:
                for parameter in group.fsdp_params:
                    parameter.unsharded_accumulated_grad = None
                    if hasattr(parameter, "_unsharded_param"):
                        parameter._unsharded_param.grad = None

    def drop(self) -> None:
        """Forget gradients that are not taken yet; all processes call it at the same place."""
        for p in self.divided.values():
            p.grad = None
        self._sums, self._of_output = {}, [None] * len(self.of_output)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D), by the output layer that all processes hold in parts."""
        asks = [hidden.new_zeros((), requires_grad=True)] if torch.is_grad_enabled() else []
        return _TrainedProduct.apply(hidden, self, *asks)

    def gather_for(self, embeddings: nn.Module) -> None:
        """Have the root's matrix, which the output layer shares, whole while tokens are looked up in it."""
        held: list[bool] = []

        def before(*_: Any) -> None:
            unit: Any = self.output_unit()
            held.append(is_whole(unit))
            if not held[-1]:
                unit.unshard()

        def after(*_: Any) -> None:
            unit: Any = self.output_unit()
            if not held.pop():
                unit.reshard()

        embeddings.register_forward_pre_hook(before)
        embeddings.register_forward_hook(after)


class _TrainedProduct(torch.autograd.Function):
    """The output layer: gathered for the product, and again for its gradient; its own gradient stays here until then.

    ``asks`` makes autograd come here where the states alone ask for no gradient.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, shards: TrainedShards, *asks: Tensor) -> Tensor:  # type: ignore[override]
        ctx.shards, ctx.asks = shards, len(asks)
        ctx.save_for_backward(hidden)
        with shards.output_layer() as (weight, bias):
            return F.linear(hidden.to(weight.dtype), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_logits: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (hidden,) = ctx.saved_tensors
        shards, flat = ctx.shards, by_logits.reshape(-1, by_logits.shape[-1])
        by_hidden = None
        if ctx.needs_input_grad[0]:
            with shards.output_layer() as (weight, _):
                by_hidden = (by_logits @ weight.to(by_logits.dtype)).to(hidden.dtype)
        if ctx.asks:
            by_weight = (flat.T @ hidden.reshape(-1, hidden.shape[-1]).to(flat.dtype)).float()
            shards.add_output([by_weight, flat.sum(0).float()][: len(shards.of_output)])
        return by_hidden, None, *([None] * ctx.asks)


class _ReduceScatter:
    """How FSDP adds up the gradients of one unit (its ``ReduceScatter``)."""

    def __init__(self, shards: TrainedShards, number: int) -> None:
        self.shards, self.number = shards, number

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any = None, async_op: bool = False
    ) -> None:
        if input_tensor.numel() != self.shards.sizes(self.number):
            raise StageError(
                "runtime.sharding: gradients of a part of a layer alone cannot be added up: set runtime.sharding: none"
            )

        def send() -> None:
            torch.distributed.reduce_scatter_single(output_tensor, input_tensor, group=group)

        self.shards.gathers.reduce(self.number, send)


def _in_order(unit: nn.Module) -> Iterator[Any]:
    """Parameters of a unit in FSDP's own order, each once: those of inner modules before their parents'."""
    seen: set[int] = set()
    for module in _modules(unit, set()):
        for p in module.parameters(recurse=False):
            if id(p) not in seen:
                seen.add(id(p))
                yield p


def _modules(module: nn.Module, seen: set[int]) -> Iterator[nn.Module]:
    from torch.distributed.fsdp import FSDPModule

    seen.add(id(module))
    for child in module.children():
        if id(child) not in seen and not isinstance(child, FSDPModule):
            yield from _modules(child, seen)
    yield module


def _padded_rows(parameter: Any, count: int) -> int:
    return -(-parameter.shape[0] // count) * count


def _row(parameter: Any) -> int:
    """Numbers in a row of a parameter."""
    return parameter.numel() // max(1, parameter.shape[0])


# -- parameters as an optimizer has them ------------------------------------------------------------------------------


def trained_parameters(lm: Any) -> dict[str, nn.Parameter]:
    """A model's tensors as an optimizer has them: this process's rows of each where it is divided."""
    shards = shards_of(lm)
    return shards.parameters if isinstance(shards, TrainedShards) else dict(lm.named_parameters())


def shards_of_rows(parameter: Any) -> TrainedShards | None:
    """The divided model that a parameter is a part of; None of one that each process has whole."""
    found: TrainedShards | None = getattr(parameter, "trained_shards", None)
    return found


def owners(parameters: Iterable[Any]) -> list[TrainedShards]:
    """The divided models that parameters are parts of."""
    return list({id(s): s for p in parameters if (s := shards_of_rows(p)) is not None}.values())


def whole_tensor(parameter: Any, tensor: Tensor) -> Tensor:
    """A tensor that goes with a parameter (its weights, a moment) as one process would have it, on the CPU.

    All processes call this for the same ones, in the same order. Only the main one, which writes, has it afterwards.
    """
    shards = shards_of_rows(parameter)
    if shards is None or tensor.ndim == 0:
        return tensor
    whole = shards.processes.gather_rows(tensor.detach())
    return whole.cpu() if shards.processes.is_main else tensor.new_empty(0, device="cpu")


def own_tensor(parameter: Any, whole: Tensor) -> Tensor:
    """This process's rows of what ``whole_tensor`` gives."""
    shards = shards_of_rows(parameter)
    if shards is None or whole.ndim == 0:
        return whole
    return rows_of(whole, shards.processes).clone()


def rows_of(whole: Tensor, processes: Any) -> Tensor:
    """The rows of a whole tensor that this process has where it is divided."""
    each = _padded_rows(whole, processes.world_size) // processes.world_size
    return whole[processes.rank * each :][:each]


def failed_anywhere(parameters: Iterable[Any]) -> Callable[[bool], bool] | None:
    """Of parameters that processes have in parts: whether anything failed in one of them, from whether it did in this
    one; all processes call it. None of others: what fails in one process is its own affair."""
    found = owners(parameters)
    if not found:
        return None
    return lambda failed: bool(found[0].processes.sum(torch.tensor(float(failed))).item())


def drop_parts(parameters: Iterable[Any]) -> None:
    """Forget gradients that processes have in parts and have not taken yet; all processes call it."""
    for shards in owners(parameters):
        shards.drop()


def exchange_parameters(optimizer: torch.optim.Optimizer, parameters: Iterable[Any]) -> None:
    """Let a fresh optimizer of a divided model's tensors have this process's rows of them."""
    own = {id(s.named[name]): rows for s in owners(parameters) for name, rows in s.parameters.items()}
    for group in optimizer.param_groups:
        group["params"] = [own.get(id(p), p) for p in group["params"]]


def total_norm(parameters: Iterable[Any]) -> Tensor:
    """The norm of gradients, of those that processes have in parts over all of them; all processes call it."""
    squares: dict[bool, Tensor] = {}
    everything = [p for p in parameters if p.grad is not None]
    for p in everything:
        mine = p.grad.double().square().sum().cpu()
        squares[shards_of_rows(p) is not None] = squares.get(shards_of_rows(p) is not None, 0) + mine
    found = owners(everything)
    none = torch.zeros((), dtype=torch.float64)
    parts = squares.get(True, none)
    return (squares.get(False, none) + (found[0].processes.sum(parts) if found else parts)).sqrt().float()


def clip_gradients(parameters: Sequence[Any], largest: float) -> Tensor:
    """Clip gradients by their norm, and return it; of those in parts by that of all processes."""
    if not owners(parameters):
        return torch.nn.utils.clip_grad_norm_(parameters, largest)
    norm = total_norm(parameters)
    with_gradient = [p for p in parameters if p.grad is not None]
    for device in {p.device for p in with_gradient}:
        torch.nn.utils.clip_grads_with_norm_([p for p in with_gradient if p.device == device], largest, norm.to(device))
    return norm


# -- whole models ------------------------------------------------------------------------------------------------------


def whole_state(lm: Any) -> dict[str, Tensor] | None:
    """All weights of a divided model on the CPU of the main process, None in the others; all processes call it."""
    shards: TrainedShards = lm.shards
    shards.gathers.meet()
    main, state = shards.processes.is_main, dict[str, Tensor]()
    for name, p in shards.named.items():
        whole = whole_of(p.detach())
        if main:
            state[name] = whole.cpu()
    return state if main else None


def same_weights(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether parameters are the same bit for bit, in all processes that hold parts of them."""
    pairs = list(zip(one.values(), other.values(), strict=True))
    differ = torch.stack([(a != b).any() for a, b in pairs]).any().float().cpu()
    found = owners([*one.values(), *other.values()])
    return not (found[0].processes.sum(differ) if found else differ).item()
