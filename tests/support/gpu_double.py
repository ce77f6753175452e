"""A CUDA device for machines without one: tensors in the CPU's memory that say they lie on ``cuda:0``.

PyTorch's C++ sees CPU tensors, so values, gradients, PEFT and the trainers work. Python sees ``cuda:0``, and a dispatch
mode sees every operation: it refuses to mix devices where CUDA would, and counts what a GPU has to be waited for, what
it has to be told to do, and float64. Kernels' own refusals, rounding, memory and streams are not seen, nor a mixture
of devices inside a backward pass.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from tests.support.graph_double import Capture, CUDAGraph

ROOT = str(Path(__file__).parents[2])
GPU, HOST = torch.device("cuda", 0), torch.device("cpu")
NAME = "a double of a GPU"
GRAD: Any = torch.Tensor.grad
aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense.default: "item",
    aten.is_nonzero.default: "bool",
    aten.equal.default: "torch.equal",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten.unique_consecutive.default: "unique",
    aten.unique_dim.default: "unique",
    aten._unique2.default: "unique",
    aten.bincount.default: "bincount",
    aten.repeat_interleave.Tensor: "repeat_interleave",
}
INDEXED = {
    aten.index.Tensor,
    aten._unsafe_index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
NO_KERNEL = {
    aten.detach.default,
    aten.alias.default,
    aten.lift_fresh.default,
    aten._unsafe_view.default,
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.set_.source_Tensor,
}
SCALARS_FROM_HOST = {
    aten.masked_fill.Tensor,
    aten.masked_fill_.Tensor,
    aten.fill_.Tensor,
    aten.where.self,
    aten.lerp.Tensor,
}  # take a CPU tensor of no dimension although they are not pointwise


class DeviceMismatch(RuntimeError):
    """What CUDA would refuse: tensors of two devices in one operation."""


class OnGpu(torch.Tensor):
    """A tensor of the double's device."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        assert GpuDouble.active is not None, "a tensor of the double is used outside of it"
        with GpuDouble.active:
            return func(*args, **(kwargs or {}))

    device = property(lambda self: GPU)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    @property
    def grad(self) -> torch.Tensor | None:  # type: ignore[override]
        """Its gradient lies where it lies: autograd's own sums lose the subclass now and then."""
        found = GRAD.__get__(self)
        if found is not None and not isinstance(found, OnGpu):
            GRAD.__set__(self, found := on_gpu(found))
        return found

    @grad.setter
    def grad(self, value: torch.Tensor | None) -> None:
        GRAD.__set__(self, value)

    @grad.deleter
    def grad(self) -> None:
        GRAD.__delete__(self)

    def get_device(self) -> int:
        return 0

    def cpu(self, *_: Any, **__: Any) -> torch.Tensor:
        return aten._to_copy(self, device=HOST)

    def cuda(self, *_: Any, **__: Any) -> torch.Tensor:
        return self

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def tolist(self) -> Any:
        assert GpuDouble.active is not None
        GpuDouble.active.waits_for("tolist")
        with torch._C._DisableTorchDispatch():
            return plain(self).tolist()

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and isinstance(args[0], torch.Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        kept = kwargs.pop("copy", False)
        device, dtype, _, _ = torch._C._nn._parse_to(*map(with_index, args), **tree_map_only(str, with_index, kwargs))
        if device is not None and device.type == "cpu":
            return aten._to_copy(self, dtype=dtype or self.dtype, device=HOST)
        if dtype is not None and dtype != self.dtype:
            return aten._to_copy(self, dtype=dtype)
        return self.clone() if kept else self


def tensors_in(found: Any) -> Iterator[torch.Tensor]:
    """Those among an operation's arguments or results, which are tensors, numbers, and lists and dicts of them."""
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, (tuple, list)):
        for one in found:
            yield from tensors_in(one)
    elif isinstance(found, dict):
        yield from tensors_in(tuple(found.values()))


def plain(t: torch.Tensor) -> torch.Tensor:
    return t.detach().as_subclass(torch.Tensor)


def on_gpu(t: torch.Tensor) -> torch.Tensor:
    return t if isinstance(t, OnGpu) else torch.Tensor._make_subclass(OnGpu, t)


def with_index(x: Any) -> Any:
    """``cuda`` is ``cuda:0``; whatever names no device is left alone."""
    if isinstance(x, torch.device) or (isinstance(x, str) and x.split(":")[0] in ("cuda", "cpu")):
        return GPU if torch.device(x).type == "cuda" else torch.device(x)
    return x


class _Arguments(TorchFunctionMode):
    """Python's side: names of devices, and constructors from values, which PyTorch fills on the CPU first."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = tuple(map(with_index, args))
        kwargs = {k: with_index(v) for k, v in (kwargs or {}).items()}
        if func in (torch.tensor, torch.as_tensor, torch.from_numpy) and kwargs.get("device") == GPU:
            return func(*args, **(kwargs | {"device": None})).to(GPU)
        like_another = func is torch.Tensor.to and len(args) > 1 and isinstance(args[1], OnGpu)
        if like_another and not isinstance(args[0], OnGpu):
            return func(args[0], GPU, args[1].dtype, *args[2:], **kwargs)
        return func(*args, **kwargs)


class GpuDouble(TorchDispatchMode):
    """The device while it is entered by ``installed``; what it has seen stays readable.

    Attributes:
        waits: by phase, kind and place: where the host waits for the device.
        launches: by phase: operations on the device that are no view and no allocation - fewer than kernels.
        norms: by phase: RMS norms, each of which ``launches`` has as the six operations of a CPU.
        float64: places that put float64 on the device.
    """

    active: GpuDouble | None = None
    supports_higher_order_operators = True

    def __init__(self, count: int = 1) -> None:
        super().__init__()
        self.count = count
        self.capturing: CUDAGraph | None = None
        self.graphs: list[CUDAGraph] = []
        self.phase = ""
        self.waits: Counter[tuple[str, str, str]] = Counter()
        self.launches: Counter[str] = Counter()
        self.norms: Counter[str] = Counter()
        self.float64: Counter[str] = Counter()

    @contextlib.contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """What happens inside is counted under a name of its own."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def new_graph(self) -> CUDAGraph:
        self.graphs.append(CUDAGraph())
        return self.graphs[-1]

    def waited(self, phase: str) -> int:
        return sum(n for (where, _, _), n in self.waits.items() if where == phase)

    def waits_for(self, kind: str) -> None:
        if self.capturing is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {kind} at {place()}")
        self.waits[self.phase, kind, place()] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = list(tensors_in((args, kwargs)))
        mine = [t for t in tensors if isinstance(t, OnGpu)]
        others = [t for t in tensors if not isinstance(t, OnGpu)]
        asked = kwargs.get("device")
        here = bool(mine)
        if asked is not None:
            # autograd's own formulas fill in zeros on the device that C++ sees, which is the CPU
            formula = torch._C._current_graph_task_id() != -1 and not others
            here = torch.device(asked).type == "cuda" or formula
            kwargs["device"] = HOST
        pinned_here = bool(kwargs.pop("pin_memory", False)) and not (here and asked is not None)
        if mine or here:
            unwaited = bool(kwargs.get("non_blocking") or kwargs.get("output_size"))
            self._check(func, args, mine, others, here, asked is not None, unwaited)
        with torch._C._DisableTorchDispatch():
            if self.capturing is None:
                out = func(*args, **kwargs)
            else:
                out = self.capturing.add(func, *tree_map_only(OnGpu, plain, (args, kwargs)))
        if pinned_here:
            out.is_pinned_here = True
        if not (mine or here):
            return out
        arguments, results = func._schema.arguments, func._schema.returns
        if any(a.alias_info is not None and a.alias_info.is_write for a in arguments):
            here = isinstance(args[0], OnGpu) if args and isinstance(args[0], torch.Tensor) else here
        if not here:
            return tree_map_only(OnGpu, plain, out)
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in results)
        if not view and func not in NO_KERNEL and func not in WAITS:
            self.launches[self.phase] += 1
            self.norms[self.phase] += func is aten.rsqrt.default
        out = tree_map_only(torch.Tensor, on_gpu, out)
        if any(t.dtype == torch.float64 for t in tensors_in(out)):
            self.float64[place()] += 1
        return out

    def _check(
        self, func: Any, args: Any, mine: list[Any], others: list[Any], here: bool, moved: bool, unwaited: bool
    ) -> None:
        """Count waits, and refuse what CUDA would refuse."""
        if func in WAITS and mine and not unwaited:
            self.waits_for(WAITS[func])
        elif func is aten._to_copy.default:
            if others and here:
                if not (unwaited and getattr(others[0], "is_pinned_here", False)):
                    self.waits_for("copy to the device")
            elif mine and moved and not here:
                self.waits_for("copy to the host")
        elif func is aten.copy_.default:
            unwaited = unwaited or (len(args) > 2 and bool(args[2]))
            free = unwaited and any(getattr(t, "is_pinned_here", False) for t in others)
            if isinstance(args[0], OnGpu) != isinstance(args[1], OnGpu) and not free:
                self.waits_for("copy to the device" if isinstance(args[0], OnGpu) else "copy to the host")
        elif func in INDEXED:
            self._check_index(func, args)
        elif mine and others and torch._C._current_graph_task_id() == -1:  # autograd loses the subclass now and then
            pointwise = torch.Tag.pointwise in func.tags or func in SCALARS_FROM_HOST or "foreach" in str(func)
            written = func._schema.arguments[0].alias_info
            into_host = written is not None and written.is_write and not isinstance(args[0], OnGpu)
            if into_host or not (pointwise and all(t.dim() == 0 for t in others)):
                raise DeviceMismatch(f"{func} of {[tuple(t.shape) for t in others]} on the CPU at {place()}")

    def _check_index(self, func: Any, args: Any) -> None:
        indices = [i for i in args[1] if isinstance(i, torch.Tensor)]
        if not isinstance(args[0], OnGpu):
            raise DeviceMismatch(f"{func}: a CPU tensor meets the device at {place()}")
        if any(i.dtype in (torch.bool, torch.uint8) for i in indices):
            self.waits_for("index by a mask")
        if any(not isinstance(i, OnGpu) for i in indices):
            self.waits_for("index from the host")
        if len(args) > 2 and not isinstance(args[2], OnGpu) and args[2].dim():
            raise DeviceMismatch(f"{func}: values on the CPU at {place()}")

    @contextlib.contextmanager
    def installed(self) -> Iterator[GpuDouble]:
        """``torch.cuda`` as a machine with such devices shows it, and every operation seen."""
        import torch._dynamo  # imports what it needs of torch.cuda before that is replaced

        state = torch.zeros(16, dtype=torch.uint8)
        shown: dict[str, Any] = {
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "_lazy_init": lambda: None,
            "device_count": lambda: self.count,
            "current_device": lambda: 0,
            "set_device": lambda device: None,
            "is_bf16_supported": lambda *_, **__: True,
            "get_device_capability": lambda *_: (9, 0),
            "get_device_name": lambda *_: NAME,
            "get_device_properties": lambda *_: types.SimpleNamespace(
                name=NAME, total_memory=80 << 30, major=9, minor=0, multi_processor_count=132
            ),
            "get_rng_state": lambda *_: state.clone(),
            "set_rng_state": lambda *_: None,
            "get_rng_state_all": lambda: [state.clone() for _ in range(self.count)],
            "set_rng_state_all": lambda states: None,
            "manual_seed": lambda seed: None,
            "manual_seed_all": lambda seed: None,
            "is_current_stream_capturing": lambda: self.capturing is not None,
            "CUDAGraph": self.new_graph,
            "graph": lambda graph, **settings: Capture(self, graph, **settings),
            "graph_pool_handle": lambda: (0, 0),
            **{name: lambda *_: None for name in ("empty_cache", "synchronize", "reset_peak_memory_stats")},
            **{name: lambda *_: 0 for name in ("max_memory_allocated", "memory_allocated", "memory_reserved")},
        }
        before = {name: getattr(torch.cuda, name) for name in shown}
        grouped, pin = torch._C._group_tensors_by_device_and_dtype, torch.Tensor.pin_memory
        compatible = torch._has_compatible_shallow_copy_type  # a module that moves gets new parameters, not new .data
        torch._has_compatible_shallow_copy_type = lambda a, b: isinstance(a, OnGpu) == isinstance(b, OnGpu)  # type: ignore
        torch._C._group_tensors_by_device_and_dtype = by_device(grouped)  # type: ignore[assignment]
        torch.Tensor.pin_memory = pinned  # type: ignore[method-assign,assignment]
        apply = torch.nn.Module._apply
        torch.nn.Module._apply = keeping_ties(apply)  # type: ignore[method-assign]
        outer, GpuDouble.active = GpuDouble.active, self
        try:
            for name, value in shown.items():
                setattr(torch.cuda, name, value)
            with _Arguments(), self:
                yield self
        finally:
            for name, value in before.items():
                setattr(torch.cuda, name, value)
            torch._has_compatible_shallow_copy_type = compatible
            torch._C._group_tensors_by_device_and_dtype = grouped  # type: ignore[assignment]
            torch.Tensor.pin_memory = pin  # type: ignore[method-assign]
            torch.nn.Module._apply = apply  # type: ignore[method-assign]
            GpuDouble.active = outer


def pinned(tensor: torch.Tensor, *_: Any) -> torch.Tensor:
    """A copy in memory from which a device reads by itself."""
    out = tensor.clone()
    out.is_pinned_here = True  # type: ignore[attr-defined]
    return out


def keeping_ties(apply: Any) -> Any:
    """A module that moves to the double gets new parameters; those that were one stay one, as on a GPU."""

    def function(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        places: dict[int, list[tuple[torch.nn.Module, str]]] = {}
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    places.setdefault(id(parameter), []).append((part, name))
        out = apply(module, *args, **kwargs)
        for (first, name), *others in places.values():
            for part, other in others:
                part._parameters[other] = first._parameters[name]
        return out

    return function


def by_device(grouped: Any) -> Any:
    """PyTorch groups tensors by the device that C++ sees; so many as lie on the double belong to it."""

    def function(lists: Any, with_indices: bool = False) -> Any:
        found = grouped(lists, with_indices)
        out = {}
        for (device, dtype), (parts, places) in found.items():
            first = next((t for part in parts for t in part if t is not None), None)
            out[GPU if isinstance(first, OnGpu) else device, dtype] = (parts, places)
        return out

    return function


def place() -> str:
    """The innermost line of the project's own code."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(ROOT) and name != __file__:
            return f"{name[len(ROOT) + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"
