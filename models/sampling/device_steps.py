"""Decoding on a device that works while the host is elsewhere: every step is the same work on the same memory.

Where a step puts its token, which rows are done and what is sampled is known to the device alone, so that a step needs
no answer from the host and can be captured as one CUDA graph, which is launched as a whole. The host asks every
``SYNC_EVERY`` tokens; rows that are done leave then, and what the next steps read grows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from models.backbone.oom_retry import out_of_memory
from models.backbone.transfers import sent
from models.fast.layers import embed, rms_norm
from models.sampling.decoding import Decoding, close_ranks, decode_layers
from models.sampling.generate import Generated

SYNC_EVERY = 16  # tokens after which the host asks which rows are done
GROWTH = 64  # columns by which what is read grows: more are read in vain, fewer need more graphs


def on_device(noise: Tensor, device: torch.device) -> Tensor:
    """Uniform noise in fp32 where it is used, still below 1."""
    return noise.float().clamp(max=1.0 - 2.0**-24).to(device)


class DeviceDecoding(Decoding):
    """Rows on their way, as ``Decoding`` has them, in steps that a device repeats by itself."""

    def run(self, noise: Tensor | None) -> Generated:
        """All tokens; ``noise`` (B, R) in [0, 1), or None for the likeliest ones."""
        room, device = self.params.max_new_tokens, self.out.device
        self.noise = None if noise is None else on_device(noise, device)
        self.step_at = torch.zeros(1, dtype=torch.long, device=device)  # the next token's number
        self.column = self.step_at + self.width  # where it is put
        self.columns, repeated = 0, Repeated(self.step, device)
        for start in range(0, room, SYNC_EVERY):
            count = min(SYNC_EVERY, room - start)
            changed = start > 0 and self.drop_done_rows()
            if not len(self.at):
                break
            columns = min(self.width + room, -(-(self.width + start + count) // GROWTH) * GROWTH)
            if changed or columns != self.columns:
                self.columns = columns
                repeated.forget()
            repeated(count)
        return self.generated()

    def step(self) -> None:
        """Sample one more token of each row, and compute the states that predict the next; all of it in place."""
        noise = None if self.noise is None else self.noise.index_select(1, self.step_at).squeeze(1)[self.at]
        tokens = self.sample(self.step_at, noise)
        storage, decoder, last = self.storage, self.decoder, len(self.decoder.layers)
        storage.hidden[: len(tokens)].index_fill_(3, self.column, 0.0)
        x, positions = embed(decoder, tokens), self.lengths[self.at] + self.step_at
        for which in (range(self.depth), range(self.depth, last)):
            if which.start and storage.prefix_states is not None:
                storage.prefix_states[self.at, positions] = x
            if which:
                x = decode_layers(decoder, self.products, storage, which, x, positions, self.column, self.columns)
        self.hidden.copy_(rms_norm(x, decoder.norm, decoder.epsilon))
        self.step_at += 1
        self.column += 1

    def drop_done_rows(self) -> bool:
        """Ask which rows are done, and let them go; whether there were any."""
        done = self.done.tolist()
        if any(done):
            (places,) = sent([torch.tensor(close_ranks(self.storage, done), dtype=torch.long)], self.out.device)
            self.at, self.done, self.hidden = (t[places] for t in (self.at, self.done, self.hidden))
            self.ends.keep(places)
        return any(done)


class Repeated:
    """A step of the same work on the same memory, launched as one CUDA graph where that can be had.

    Args:
        step: without arguments and results; nothing in it may wait for the device.
        device: where it works.
    """

    def __init__(self, step: Callable[[], None], device: torch.device) -> None:
        self.step, self.possible = step, device.type == "cuda"
        self.graph: torch.cuda.CUDAGraph | None = None
        self.pool = torch.cuda.graph_pool_handle() if self.possible else None

    def forget(self) -> None:
        """What is captured is no more the step."""
        self.graph = None

    def __call__(self, count: int) -> None:
        """So many steps. The first of a kind is launched by itself, and warms up what the graph needs."""
        if self.graph is None and count > 1:
            self.step()
            count -= 1
            if self.possible:
                self.record()
        for _ in range(count):
            if self.graph is None:
                self.step()
            else:
                self.graph.replay()

    def record(self) -> None:
        """Capture the step; where that fails, steps are launched one operation after another, which is said."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                self.step()
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            self.possible = False
            text = str(error).splitlines()[0]
            warnings.warn(f"sampling: no CUDA graph of a step ({text}); it is slower without", stacklevel=2)
            return
        self.graph = graph
