"""Rollouts by servers: the policy is handed over as an adapter, and what comes back is compared with it.

The base is frozen, so that adapter files are all that travels. A server that samples from other weights than those that
are meant, whatever the reason, shows in the log-probabilities that it gives of its own tokens: after every rollout they
are compared with those of the training forward.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from data.common.errors import StageError, UserError
from models.backbone.logprobs import make_rows, scatter
from models.backbone.transfers import wide
from models.roles.export import save_adapter
from models.roles.role_view import RoleView
from models.sampling.generate import Generated, SamplingParams
from models.sampling.remote import RemoteEngine
from models.sampling.settings import RolloutServers
from stages.ppo_math import response_mask
from stages.stage import StageContext

COMPARED = 4  # rows of each server, where not all are computed anyway
SERVED = "served_adapters"
"""The folder, inside the stage's own, of the adapters that servers read."""


def rollout_servers(context: StageContext) -> RemoteRollouts | None:
    """The servers of ``runtime.rollouts``; None where trivet samples by itself."""
    return RemoteRollouts(context.rollouts, context) if context.rollouts.engine == "vllm" else None


class RemoteRollouts:
    """The servers as one stage uses them; every process of a run has one, and they share the servers.

    Args:
        config: ``runtime.rollouts``.
        context: the stage's.

    Raises:
        UserError: an address or key that cannot be used.
    """

    def __init__(self, config: RolloutServers, context: StageContext) -> None:
        self.context, self.engine = context, RemoteEngine(config)
        self.folder = (context.out / SERVED).absolute()
        fp32 = context.base.dtype in (torch.float32, torch.float64)
        self.tolerance = config.tolerance or (1e-3 if fp32 else 0.1)  # nats a token, on average

    def check(self, longest_prompt: int, max_new_tokens: int) -> None:
        """Ask every server what it serves.

        Raises:
            UserError: one has less room than these tokens.
            RemoteError: none answers.
        """
        served = self.context.processes.on_main(self.engine.models)
        for url, models in served.items():
            rooms = [m["max_model_len"] for m in models.values() if isinstance(m.get("max_model_len"), int)]
            if rooms and min(rooms) < longest_prompt + max_new_tokens:
                raise UserError(
                    f"runtime.rollouts: {url} has room for {min(rooms)} tokens, and a prompt with its response takes "
                    f"{longest_prompt} + {max_new_tokens}: start it with a larger --max-model-len"
                )

    def hand_over(self, role: str) -> None:
        """Write a role's adapter, once for all processes, and have every server sample from it.

        Its name is made of its bytes. What was handed over before is forgotten, here and by the servers.

        Raises:
            UserError: the role is no adapter but a whole model.
            RemoteError: no server can load it.
        """
        if role in self.context.base.copies:
            raise UserError(
                f"runtime.rollouts: servers are given adapters, and '{role}' is a whole model: engine 'own'"
            )
        found = self.context.processes.on_main(lambda: self._load(role))
        self.engine.model, sentences, self.engine.failed, self.engine.refused = found
        for text in sentences:
            self.context.warn(text)

    def _load(self, role: str) -> tuple[str, list[str], dict[int, str], dict[int, str]]:
        if role == "base":
            return self.engine.base_model(), [], {}, self.engine.refused
        fresh = self.folder / "fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        save_adapter(self.context.base, role, fresh)
        digest = hashlib.sha256()
        for path in sorted(fresh.iterdir()):
            digest.update(path.name.encode() + b"\n" + path.read_bytes())
        name = f"trivet-{digest.hexdigest()[:16]}"
        place = self.folder / name
        if not place.is_dir():
            fresh.rename(place)
        sentences = self.engine.load(name, str(place))
        for old in sorted(self.folder.glob("trivet-*")):
            if old != place:
                self.engine.unload(old.name)
                shutil.rmtree(old)
        return name, sentences, self.engine.failed, self.engine.refused

    @torch.no_grad()
    def sample(
        self, role: str, prompts: Sequence[Sequence[int]], params: SamplingParams, noise: Tensor | None
    ) -> Generated:
        """Hand a role over, and have the servers continue this process's prompts.

        Raises:
            RemoteError: in every process, where one of them has no server left.
        """
        self.hand_over(role)
        with self.context.base.role(role) as view:
            return self.respond(view, prompts, params, noise)

    def respond(
        self, view: RoleView, prompts: Sequence[Sequence[int]], params: SamplingParams, noise: Tensor | None
    ) -> Generated:
        """Have the servers continue this process's prompts by what was handed over; errors as ``sample``."""
        return self.context.processes.together(partial(self.engine, view, prompts, params=params, noise=noise))

    @torch.no_grad()
    def verify(self, view: RoleView, prompts: Sequence[Sequence[int]], made: Generated, params: SamplingParams) -> None:
        """Compare a few of each server's longest rows with this role's own log-probabilities; errors as ``compare``.

        ``params`` are those of the rows; servers tell greedy ones' log-probabilities at temperature 1.
        """
        by = self.engine.sampled_by
        order = sorted(range(len(by)), key=lambda row: -len(made.ids[row]))
        chosen = [row for number in set(by) for row in [r for r in order if by[r] == number][:COMPARED]]

        def judge() -> None:
            if not chosen:
                return
            assert made.logprobs is not None
            pad, device = self.context.pad_id, self.context.base.device
            rows = make_rows([list(prompts[i]) for i in chosen], [made.ids[i] for i in chosen], pad, device)
            states = view.states(rows.ids, rows.mask, rows.response_positions(), rows.packing)
            flat, _ = view.logprobs(states, rows.targets(), params.temperature, False)
            width = made.logprobs.shape[1]
            mask = response_mask(torch.tensor([len(made.ids[i]) for i in chosen], device=device), width)
            own = scatter(flat.float(), rows.response_lengths, width)
            self._require(_gaps(own, made.logprobs[chosen], mask), mask, [by[i] for i in chosen])

        self.context.processes.together(judge)

    def compare(self, logprobs: Tensor, made: Generated, mask: Tensor) -> dict[str, float]:
        """How far the servers' log-probabilities are from the policy's, in nats a token; metrics over all processes.

        Args:
            logprobs: (B, R) of the training forward.
            made: what the last call of the engine gave, row by row.
            mask: (B, R) True at response tokens.

        Raises:
            StageError: by more than the tolerance on average, in any process's rows of any server.
        """
        assert made.logprobs is not None
        gaps = _gaps(logprobs, made.logprobs[:, : mask.shape[1]], mask)
        self.context.processes.together(lambda: self._require(gaps, mask, self.engine.sampled_by))
        total = self.context.processes.sum(torch.stack([gaps.sum(), wide(mask.sum())])).tolist()
        widest = self.context.processes.gather([gaps.max().item() if gaps.numel() else 0.0])
        return {"rollout/server_gap": total[0] / max(total[1], 1.0), "rollout/server_gap_max": max(widest)}

    def sampled(
        self, role: str, prompts: Sequence[Sequence[int]], params: SamplingParams, noise: Tensor | None
    ) -> Generated:
        """As ``sample``, and compared: for rows whose log-probabilities nobody computes anyway.

        Raises:
            StageError: as ``sample`` and ``verify``.
        """
        made = self.sample(role, prompts, params, noise)
        with self.context.base.role(role) as view:
            self.verify(view, prompts, made, params if noise is not None else replace(params, temperature=1.0))
        return made

    def _require(self, gaps: Tensor, mask: Tensor, sampled_by: Sequence[int]) -> None:
        """Judge each server by the rows that it sampled."""
        numbers = torch.tensor(sampled_by, device=gaps.device)
        for number in sorted(set(sampled_by)):
            rows = numbers == number
            gap = (gaps[rows].sum() / mask[rows].sum().clamp(min=1)).item()
            if not gap <= self.tolerance:
                raise StageError(
                    f"runtime.rollouts: {self.engine.servers[number].url} does not sample from the policy: its "
                    f"log-probabilities are off by {gap:.3g} nats a token on average (at most {self.tolerance:g}). It "
                    "serves another base, an older adapter, or computes less exactly (--dtype, "
                    "--logprobs-mode processed_logprobs). Restart it with `trivet rollout-server RECIPE`; the same "
                    "command then resumes. Where the rounding of its dtype is all, raise runtime.rollouts.tolerance"
                )

    def close(self) -> None:
        """Forget what was handed over."""
        if self.context.processes.is_main:
            for old in sorted(self.folder.glob("trivet-*")):
                self.engine.unload(old.name)
            shutil.rmtree(self.folder, ignore_errors=True)


def _gaps(logprobs: Tensor, sampled: Tensor, mask: Tensor) -> Tensor:
    return wide(torch.where(mask, (logprobs - sampled).abs(), 0.0))


def importance_weights(logprobs: Tensor, sampled: Tensor, mask: Tensor, cap: float) -> Tensor:
    """min(policy / sampler, cap) for each token (B, R), 1 where there is none: truncated importance sampling.

    Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training": the tokens are the
    sampler's, the gradient is that of the policy before the update, and the ratio of both corrects for what lies
    between them, such as another dtype or other kernels.
    """
    ratio = (logprobs - sampled).exp().clamp(max=cap)
    return torch.where(mask, ratio, 1.0)
