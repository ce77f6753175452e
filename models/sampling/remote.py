"""An engine whose rows are sampled by a pool of vLLM servers.

An adapter is known to the servers by a name made of its bytes: vLLM keeps the old weights where a name is used twice
(seen with 0.32: 1.84 nats off, without a word), and one name here can mean one adapter only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from data.common.http_client import RemoteError, Server
from models.roles.role_view import RoleView
from models.sampling.generate import Generated, SamplingParams
from models.sampling.settings import RolloutServers
from models.sampling.vllm_server import Response, VLLMServer


@dataclass(slots=True)
class _Share:
    """What one round of requests gave."""

    responses: dict[int, Response] = field(default_factory=dict)
    by: dict[int, int] = field(default_factory=dict)  # row -> number of the server that sampled it
    failed: dict[int, RemoteError] = field(default_factory=dict)  # server -> its first failure


class RemoteEngine:
    """Samples from the adapter that was handed over last, row by row, each with a seed of its own.

    A row's tokens depend on its prompt and its seed, not on which server or process asks; other tokens than trivet's
    own engines sample from the same noise, since vLLM draws in its own way.

    Args:
        config: the servers, and how they are asked.

    Raises:
        UserError: an address or key that cannot be used.
    """

    def __init__(self, config: RolloutServers) -> None:
        self.config = config
        self.servers = [VLLMServer(Server.of(url, config)) for url in config.servers]
        self.refused: dict[int, str] = {}  # servers that take no adapter, and why; they are asked for nothing more
        self.failed: dict[int, str] = {}  # servers that could not be given the present one
        self.model = ""  # the name of what the servers sample from
        self.sampled_by: list[int] = []  # the number of the server behind each row of the last call

    def models(self) -> dict[str, dict[str, dict[str, Any]]]:
        """What each server that answers serves, by address.

        Raises:
            RemoteError: none answers.
        """
        found, failed = {}, []
        for one in self.servers:
            try:
                found[one.url] = one.models()
            except RemoteError as error:
                failed.append(str(error))
        if not found:
            raise RemoteError(_none_left(failed))
        return found

    def base_model(self) -> str:
        """The name by which the servers know their base; RemoteError where they do not say one."""
        names = {name for models in self.models().values() for name, card in models.items() if not card.get("parent")}
        if len(names) != 1:
            raise RemoteError(f"the servers of runtime.rollouts serve bases under {len(names)} names: use one for all")
        return names.pop()

    def load(self, name: str, folder: str) -> list[str]:
        """Have all servers load an adapter and sample from it; sentences about servers that now cannot.

        A server that refuses one is not asked again, until the next start; one that does not answer is, with the next
        adapter.

        Raises:
            RemoteError: none of them can.
        """
        self.failed, sentences = dict(self.refused), list[str]()
        for number, one in enumerate(self.servers):
            if number in self.refused:
                continue
            try:
                one.load_adapter(name, folder)
            except RemoteError as error:
                self.failed[number] = str(error)
                lasting = "for good" if error.refused else "of this rollout"
                self.refused |= {number: str(error)} if error.refused else {}
                sentences.append(f"a rollout server is left out {lasting}: {error}")
        if len(self.failed) == len(self.servers):
            raise RemoteError(_none_left(list(self.failed.values())))
        self.model = name
        return sentences

    def unload(self, name: str) -> None:
        """Have all servers forget an adapter; those that do not are left alone."""
        for number, one in enumerate(self.servers):
            if number in self.failed:
                continue
            with contextlib.suppress(RemoteError):
                one.unload_adapter(name)

    @torch.no_grad()
    def __call__(
        self,
        role: RoleView,
        prompts: Sequence[Sequence[int]],
        *,
        params: SamplingParams,
        noise: Tensor | None,
    ) -> Generated:
        """Continue ``prompts``; the arguments are those of ``CachedEngine``, and a row's first noise is its seed.

        Raises:
            RemoteError: a row is left, and every server has failed.
        """
        seeds = [None] * len(prompts) if noise is None else [int(x * 2**53) for x in noise[:, 0].tolist()]
        alive = [number for number in range(len(self.servers)) if number not in self.failed]
        done, reasons = _Share(), list(self.failed.values())
        while left := [row for row in range(len(prompts)) if row not in done.responses]:
            if not alive:
                raise RemoteError(_none_left(reasons))
            made = self._round({row: alive[i % len(alive)] for i, row in enumerate(left)}, prompts, params, seeds)
            done.responses |= made.responses
            done.by |= made.by
            reasons += [str(error) for error in made.failed.values()]
            alive = [number for number in alive if number not in made.failed]
        self.sampled_by = [done.by[row] for row in range(len(prompts))]
        return _generated([done.responses[row] for row in range(len(prompts))], params, role.lm.device)

    def _round(
        self,
        asked: dict[int, int],
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        seeds: Sequence[int | None],
    ) -> _Share:
        """Ask for each row the server that it is given to; a server that fails is asked for no further row."""
        share = _Share()

        def ask(row: int, number: int) -> None:
            if number in share.failed:
                return
            try:
                share.responses[row] = self.servers[number].complete(self.model, prompts[row], params, seeds[row])
                share.by[row] = number
            except RemoteError as error:
                share.failed.setdefault(number, error)

        workers = self.config.concurrency * len(set(asked.values()))
        with ThreadPoolExecutor(max_workers=min(workers, len(asked)), thread_name_prefix="trivet-rollout") as pool:
            for future in [pool.submit(ask, row, number) for row, number in asked.items()]:
                future.result()
        return share


def _none_left(reasons: Sequence[str]) -> str:
    return "no rollout server is left:\n" + "\n".join(f"  {reason}" for reason in reasons)


def _generated(responses: Sequence[Response], params: SamplingParams, device: torch.device) -> Generated:
    logprobs = torch.zeros((len(responses), params.max_new_tokens))
    for row, response in enumerate(responses):
        logprobs[row, : len(response.logprobs)] = torch.tensor(response.logprobs)
    return Generated(
        ids=[response.ids for response in responses],
        finished=[response.finished for response in responses],
        logprobs=logprobs.to(device),
    )
