"""AdaLoRA's share of a step: keep the factors of each matrix orthogonal, and take ranks away where they matter least.

Zhang et al. 2023 (arXiv:2303.10512), with PEFT's allocator. Each role has a budget of its own. A stage's steps have
three parts: all ranks are trained; the budget falls by a cubic law from the first rank to the target's; what is left is
trained on. Importance is that of the paper, a moving average of |weight x gradient| times one of its uncertainty.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft import AdaLoraConfig
from peft.tuners.adalora.layer import RankAllocator
from torch import Tensor, nn

from models.backbone.settings import AdapterConfig
from models.roles.shared_base import SharedBase

IMPORTANCE, UNCERTAINTY, KEPT = "budget/importance/", "budget/uncertainty/", "budget/kept/"


class _Named:
    """What PEFT's allocator asks of a model, of one role's tensors alone: it finds names by their parts."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = parameters

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return iter(self.parameters.items())


class RankBudget:
    """The ranks of one role's AdaLoRA adapter.

    Args:
        parameters: of the adapter, by name: P, Lambda and Q of each matrix are ``lora_B``, ``lora_E`` and ``lora_A``.
        role: whose.
        config: its adapter's configuration.
        settings: the weight of orthogonality, and which shares of the steps the budget falls in.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], role: str, config: AdaLoraConfig, settings: AdapterConfig
    ) -> None:
        self.parameters, self.settings = dict(parameters), settings
        self.allocator = RankAllocator(_Named(self.parameters), copy.deepcopy(config), role)
        self.kept: dict[str, list[bool]] | None = None  # what the last allocation has left, by the name of Lambda

    @classmethod
    def of(cls, base: SharedBase, role: str, settings: AdapterConfig) -> RankBudget | None:
        """The budget of a role; None where it has no such adapter."""
        config = base.adapters.get(role)
        if not isinstance(config, AdaLoraConfig):
            return None
        if settings.method != "adalora":  # a copy of one that the run was given keeps its own settings
            settings = AdapterConfig(method="adalora")
        named = {n: p for n, p in base.parameters_of(role).items() if ".lora_" in n}
        return cls(named, role, config, settings)

    @torch.no_grad()
    def add_orthogonality(self) -> None:
        """Add to the gradients that of ``orthogonality`` times the mean over all factors of |P'P - I| (equation 4)."""
        factors = {n: p for n, p in self.parameters.items() if ".lora_A." in n or ".lora_B." in n}
        weight = self.settings.orthogonality / max(1, len(factors))
        for name, p in factors.items():
            if p.grad is None:
                continue
            rows = p.float() if ".lora_A." in name else p.float().T
            off = rows @ rows.T - torch.eye(len(rows), device=p.device)
            gradient = 2 * (off @ rows) / off.norm().clamp(min=1e-12)
            p.grad += weight * (gradient if ".lora_A." in name else gradient.T)

    @torch.no_grad()
    def after_step(self, step: int, total: int) -> None:
        """Take away what the budget does not allow, after an optimizer step and before its gradients are dropped.

        Args:
            step: its number, from 1; one that was skipped leaves no gradients, and counts.
            total: steps of the whole training.
        """
        allocator, named = self.allocator, _Named(self.parameters)
        first, last = (round(share * total) for share in self.settings.budget)
        config = allocator.peft_config
        config.total_step, config.tinit, config.tfinal = total, first, total - last
        if step < last:
            if any(p.grad is not None for p in self.parameters.values()):
                self._weigh(named)
            budget, due = allocator.budget_schedule(step)
            if due and allocator.exp_avg_ipt:
                allocator.mask_to_budget(named, budget)
        elif self.kept is not None:
            allocator.mask_using_rank_pattern(named, self.kept)
        elif allocator.exp_avg_ipt:
            self.kept = allocator.mask_to_budget(named, allocator.target_bgt)

    def _weigh(self, named: _Named) -> None:
        """Update the importance of every weight; what no gradient reaches has none."""
        missing = [p for p in self.parameters.values() if p.grad is None]
        for p in missing:
            p.grad = torch.zeros_like(p)
        self.allocator.update_ipt(named)
        for p in missing:
            p.grad = None

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, by names that begin with ``budget/``."""
        kept = {} if self.kept is None else {f"{KEPT}{n}": torch.tensor(v).byte() for n, v in self.kept.items()}
        averages: tuple[tuple[str, Mapping[str, Tensor]], ...] = (
            (IMPORTANCE, self.allocator.exp_avg_ipt),
            (UNCERTAINTY, self.allocator.exp_avg_unc),
        )
        return kept | {f"{mark}{n}": t for mark, named in averages for n, t in named.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of ``state``; tensors of other roles are passed over."""
        allocator: Any = self.allocator
        for name, p in self.parameters.items():
            if IMPORTANCE + name in tensors:
                allocator.ipt[name] = torch.zeros_like(p)
                allocator.exp_avg_ipt[name] = tensors[IMPORTANCE + name].to(p)
                allocator.exp_avg_unc[name] = tensors[UNCERTAINTY + name].to(p)
        kept = {n: tensors[KEPT + n].bool().tolist() for n in self.parameters if KEPT + n in tensors}
        self.kept = kept or None
