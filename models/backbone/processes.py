"""Where the process runs: device, dtype, rank, and the few collectives that the stages need.

One `accelerate.Accelerator` a process. Mixed precision stays off: a bf16 base has fp32 adapters and heads, so there
is no autocast to leave behind for the next stage.
"""

from __future__ import annotations

import os
import socket
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, ClassVar, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import InitProcessGroupKwargs, gather_object
from torch import Tensor

from data.common.errors import StageError, UserError
from models.backbone.bf16_units import MIN_WIDTH, agree_on_units, has_bf16_units, own_bf16_units
from models.backbone.launch import check_devices, check_launch, check_world_size
from models.backbone.peers import Peer, failure_notice
from models.backbone.sharding import Gathers
from models.backbone.watching import starting

T = TypeVar("T")
PATIENCE = timedelta(hours=6)  # one process may ask a slow server or write much while the others wait for it


def quiet_libraries() -> None:
    """No progress bars and chatter of libraries between ours; their warnings about us are ours to fix."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # importing it here would take 80 MB
    if "datasets" in sys.modules:
        sys.modules["datasets"].disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft|accelerate)\b")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def chosen_device(asked: str) -> str:
    """The type of device for ``runtime.device``: 'auto' is a CUDA GPU where there is one, else the CPU.

    Raises:
        UserError: 'cuda' on a machine without one.
    """
    if asked == "cuda" and not torch.cuda.is_available():
        raise UserError("runtime.device: 'cuda' asked for, but torch sees no GPU: use 'auto' or 'cpu'")
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return asked


def forget_other_device(on_cpu: bool) -> None:
    """Accelerate keeps the device of a process's first run, and would give it to one that asks for another.

    Raises:
        UserError: this process works with others, which would have to change the device with it.
    """
    state = PartialState._shared_state
    if not state or (state["device"].type == "cpu") == on_cpu:
        return
    if state["num_processes"] > 1:
        raise UserError(
            f"runtime.device: this process began on {state['device']} together with others; a run on another device "
            "needs a new start"
        )
    AcceleratorState._reset_state(reset_partial_state=True)


class Processes:
    """The process group seen from one process.

    Each collective waits until no process needs a layer of a divided base any more (``Gathers.meet``).
    """

    gathers: ClassVar[Gathers | None] = None  # of bases that the processes hold in parts; of the one process group

    def __init__(self, device: str = "auto", threads: int | None = None) -> None:
        check_launch(os.environ)
        on_cpu = chosen_device(device) == "cpu"
        if not on_cpu:
            check_devices(torch.cuda.device_count(), os.environ)
        quiet_libraries()
        forget_other_device(on_cpu)
        os.environ["ACCELERATE_USE_CPU"] = str(on_cpu).lower()  # SFTTrainer's own Accelerator must agree
        if threads:
            torch.set_num_threads(threads)
        with starting(os.environ):
            self.accelerator = Accelerator(
                cpu=on_cpu, mixed_precision="no", kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)]
            )
        self.device = self.accelerator.device
        self.rank = self.accelerator.process_index
        self.world_size = self.accelerator.num_processes
        check_world_size(self.world_size, os.environ)
        if on_cpu and self.world_size > 1:
            agree_on_units(self.gather([own_bf16_units()]))

    @property
    def unused_devices(self) -> str:
        """A sentence about GPUs that are visible and that no process of this run uses; '' where there are none."""
        visible = torch.cuda.device_count() if self.device.type == "cuda" else 0
        if self.world_size > 1 or visible < 2:
            return ""
        return (
            f"{visible} GPUs are visible, and one process uses one of them ({self.device}); "
            "`accelerate launch --no_python trivet run RECIPE` uses them all"
        )

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    @property
    def threads(self) -> int:
        """CPU threads of this process."""
        return torch.get_num_threads()

    @property
    def processor(self) -> str:
        """What the device computes with, on which the last places of results depend: the instruction set of the CPU, or
        the name of the GPU."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"CPU {torch.backends.cpu.get_cpu_capability()}"

    def use_threads(self, threads: int) -> None:
        """Compute with so many CPU threads."""
        if threads != self.threads:
            torch.set_num_threads(threads)

    def divide_bases(self) -> Gathers:
        """What these processes gather layers of divided bases with; all of them call this at the same place."""
        if Processes.gathers is None:
            on_gpus = self.device.type != "cpu"  # whose own group carries nothing of the host's
            group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE) if on_gpus else None
            Processes.gathers = Gathers(group)
        return Processes.gathers

    def _meet(self) -> None:
        if self.gathers is not None:
            self.gathers.meet()

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self._meet()
        self.accelerator.wait_for_everyone()

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over processes (the tensor itself when there is one)."""
        if self.world_size == 1:
            return tensor
        self._meet()
        total = tensor.detach().clone().to(self.device)  # NCCL sums on the GPU only
        torch.distributed.all_reduce(total)
        return total.to(tensor.device)

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add gradients up over processes in one message; a process without a gradient adds zeros.

        Losses are divided by global token counts, so the sum is the gradient of the whole minibatch. A parameter that
        has none in any process has none afterwards, so that an optimizer leaves it alone as in one process.
        """
        if self.world_size == 1:
            return
        parameters = list(parameters)
        for p, total in zip(parameters, self.sum_known([p.grad for p in parameters], parameters), strict=True):
            p.grad = None if total is None else total.to(p.dtype, copy=True)

    def sum_known(
        self, tensors: Sequence[Tensor | None], templates: Sequence[Tensor], dtype: torch.dtype | None = None
    ) -> list[Tensor | None]:
        """Each tensor summed over processes, in one message; None where no process has it.

        Args:
            tensors: this process's; None where it has none.
            templates: tensors of their shapes, the same in all processes.
            dtype: of the sums; None for that of ``templates``.
        """
        if self.world_size == 1:
            return list(tensors)
        filled = [torch.zeros_like(x, dtype=dtype) if t is None else t for t, x in zip(tensors, templates, strict=True)]
        having = torch.tensor([float(t is not None) for t in tensors], device=self.device)
        flat = torch.cat([*(t.flatten() for t in filled), having])
        self._meet()
        torch.distributed.all_reduce(flat)
        *sums, counts = flat.split([*(x.numel() for x in templates), len(tensors)])
        found = zip(sums, templates, counts.tolist(), strict=True)
        return [total.view_as(x) if count else None for total, x, count in found]

    def gather(self, items: Sequence[Any]) -> list[Any]:
        """All processes' items, in rank order."""
        if self.world_size == 1:
            return list(items)
        self._meet()
        return list(gather_object(list(items)))

    def gather_rows(self, rows: Tensor) -> Tensor:
        """All processes' rows (B, ...) of numbers, in rank order; they agree in all dimensions but the first."""
        return rows if self.world_size == 1 else torch.cat(self._rows_by_rank(rows))

    def gather_dealt(self, rows: Tensor) -> Tensor:
        """All processes' rows (B, ...) in the order in which ``dealt`` gave them out, one to each process in turn."""
        if self.world_size == 1:
            return rows
        parts = self._rows_by_rank(rows)
        turns = [part[turn] for turn in range(max(map(len, parts))) for part in parts if turn < len(part)]
        return torch.stack(turns) if turns else rows

    def dealt(self, items: Sequence[T]) -> list[T]:
        """This process's items where they are given out one to each process in turn."""
        return list(items[self.rank :: self.world_size])

    def _rows_by_rank(self, rows: Tensor) -> list[Tensor]:
        known = torch.zeros(self.world_size, dtype=torch.long, device=self.device)
        known[self.rank] = len(rows)
        self._meet()
        torch.distributed.all_reduce(known)
        counts = known.tolist()
        filled = rows.new_zeros((max(counts), *rows.shape[1:]), device=self.device)
        filled[: len(rows)] = rows
        found = [torch.empty_like(filled) for _ in counts]
        torch.distributed.all_gather(found, filled)
        return [part[:count].to(rows.device) for part, count in zip(found, counts, strict=True)]

    def together(self, work: Callable[[], T]) -> T:
        """``work()``; where it fails in one process, all of them stop with its error instead of waiting for it.

        Raises:
            UserError, StageError: of whichever process failed; in that process whatever ``work`` raised.
        """
        if self.world_size == 1:
            return work()
        made: list[T] = []
        own: Exception | None = None
        try:
            made = [work()]
        except Exception as error:
            own = error
        failed = self.gather([] if own is None else [(isinstance(own, UserError), self._words_of(own))])
        if own is not None:
            raise own
        if failed:
            by_user, text = failed[0]
            raise (UserError if by_user else StageError)(text)
        return made[0]

    def _words_of(self, error: Exception) -> str:
        """What the other processes say of an error of this one."""
        if isinstance(error, UserError | StageError):
            return f"process {self.rank}: {error}"
        return failure_notice(Peer(self.rank, socket.gethostname(), os.getpid(), ""), error)

    def on_main(self, work: Callable[[], T]) -> T:
        """``work()`` of the main process, for all of them; its error as well (``together``)."""
        made = self.together(lambda: [work()] if self.is_main else [])
        return made[0] if self.world_size == 1 else self.gather(made)[0]

    def share(self, count: int) -> range:
        """This process's contiguous share of ``count`` rows (sizes differ by at most one)."""
        each, extra = divmod(count, self.world_size)
        start = self.rank * each + min(self.rank, extra)
        return range(start, start + each + (self.rank < extra))


def resolve_dtype(name: str, device: torch.device, width: int | None = None) -> torch.dtype:
    """'auto' is bf16 where the device multiplies it faster, and fp32 elsewhere.

    Args:
        width: of the base's states. On a CPU it decides: small products gain nothing; None is taken for small.
    """
    if name == "auto":
        if device.type == "cpu":
            faster = width is not None and width >= MIN_WIDTH and has_bf16_units()
        else:
            faster = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if faster else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def peak_memory(device: torch.device) -> int:
    """Peak bytes: allocated on a GPU since the last reset, resident set of the process on CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
