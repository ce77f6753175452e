"""One PPO update written a second time, from the papers, in float64: loops, full softmax tables, no shared code.

The model is a plain Transformers causal LM. An adapter is added to its weights (``W + s B A``) before each forward
pass, one row at a time and without padding, so that neither PEFT nor masks nor packing of rows is involved. Nothing
here imports trivet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

Leaves = dict[str, tuple[Tensor, Tensor]]  # weight name -> (A, B)


@dataclass
class Settings:
    """The constants of one update, under the papers' names."""

    temperature: float
    beta: float
    penalty: float
    score_clip: float | None
    gamma: float
    lam: float
    clip: float
    value_clip: float | None
    entropy: float
    whiten: bool
    rate: float
    weight_decay: float
    epsilon: float
    max_norm: float


@dataclass
class Oracle:
    """Adapters of policy, reference and value, a linear head, and hand-written AdamW."""

    lm: torch.nn.Module
    transposed: bool  # GPT-2 keeps its linear weights as (in, out)
    scale: float
    policy: Leaves
    reference: Leaves
    value: Leaves
    head: tuple[Tensor, Tensor]
    settings: Settings
    moments: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    steps: int = 0

    def named(self, role: str) -> dict[str, Tensor]:
        out = {}
        for name, (a, b) in (self.policy if role == "policy" else self.value).items():
            out[f"{role}/{name}/A"], out[f"{role}/{name}/B"] = a, b
        if role == "value":
            out["value/head/weight"], out["value/head/bias"] = self.head
        return out

    def run(self, adapter: Leaves, ids: list[int]) -> tuple[Tensor, Tensor]:
        """Logits (L, V) and last hidden states (L, D) of one row."""
        weights = {}
        own = dict(self.lm.named_parameters())
        for name, (a, b) in adapter.items():
            change = self.scale * (b @ a)
            weights[name] = own[name] + (change.T if self.transposed else change)
        out = torch.func.functional_call(
            self.lm, weights, (torch.tensor([ids]),), {"output_hidden_states": True, "use_cache": False}
        )
        return out.logits[0], out.hidden_states[-1][0]

    def tokens(self, adapter: Leaves, query: list[int], response: list[int]) -> tuple[list[Tensor], list[Tensor]]:
        """Log-probability of each response token, and the entropy where it was drawn."""
        logits, _ = self.run(adapter, query + response)
        logprobs, entropies = [], []
        for i, token in enumerate(response):
            table = torch.log_softmax(logits[len(query) + i - 1] / self.settings.temperature, dim=0)
            logprobs.append(table[token])
            entropies.append(-(table.exp() * table).sum())
        return logprobs, entropies

    def values(self, query: list[int], response: list[int]) -> list[Tensor]:
        """What the critic says before each response token."""
        _, hidden = self.run(self.value, query + response)
        return [hidden[len(query) + i - 1] @ self.head[0] + self.head[1] for i in range(len(response))]

    def advantages(
        self, scores: list[float], stopped: list[bool], old: list, ref: list, values: list
    ) -> tuple[list[list[float]], list[list[float]]]:
        """Ziegler's token rewards, Schulman's estimator, then whitening over all tokens of the rollout."""
        s, raw, returns = self.settings, [], []
        for score, done, o, r, v in zip(scores, stopped, old, ref, values, strict=True):
            if s.score_clip is not None:
                score = min(max(score, -s.score_clip), s.score_clip)
            rewards = [-s.beta * (a - b) for a, b in zip(o, r, strict=True)]
            rewards[-1] += score - (0.0 if done else s.penalty)
            deltas = [rewards[t] + s.gamma * (v[t + 1] if t + 1 < len(v) else 0.0) - v[t] for t in range(len(v))]
            row = [sum((s.gamma * s.lam) ** (j - t) * deltas[j] for j in range(t, len(v))) for t in range(len(v))]
            raw.append(row)
            returns.append([a + b for a, b in zip(row, v, strict=True)])
        if s.whiten:
            flat = [a for row in raw for a in row]
            mean = sum(flat) / len(flat)
            score_std = math.sqrt(sum((a - mean) ** 2 for a in flat) / (len(flat) - 1))
            raw = [[(a - mean) / score_std for a in row] for row in raw]
        return raw, returns

    def update(
        self,
        queries: list[list[int]],
        responses: list[list[int]],
        scores: list[float],
        stopped: list[bool],
        minibatches: list[list[int]],
    ) -> list[dict[str, Tensor]]:
        """All steps of one update; returns each step's clipped gradients."""
        with torch.no_grad():
            pairs = list(zip(queries, responses, strict=True))
            old = [[x.item() for x in self.tokens(self.policy, q, r)[0]] for q, r in pairs]
            ref = [[x.item() for x in self.tokens(self.reference, q, r)[0]] for q, r in pairs]
            old_values = [[x.item() for x in self.values(q, r)] for q, r in pairs]
        advantages, returns = self.advantages(scores, stopped, old, ref, old_values)
        history = []
        for rows in minibatches:
            count = sum(len(responses[b]) for b in rows)
            policy_terms, value_terms = [], []
            for b in rows:
                new, entropies = self.tokens(self.policy, queries[b], responses[b])
                for t, v in enumerate(self.values(queries[b], responses[b])):
                    policy_terms.append(self.surrogate(new[t], old[b][t], advantages[b][t]))
                    policy_terms.append(-self.settings.entropy * entropies[t])
                    value_terms.append(self.squared(v, old_values[b][t], returns[b][t]))
            history.append(self.step(torch.stack(policy_terms).sum() / count, torch.stack(value_terms).sum() / count))
        return history

    def surrogate(self, new: Tensor, old: float, advantage: float) -> Tensor:
        ratio, eps = torch.exp(new - old), self.settings.clip
        inside = min(max(ratio.item(), 1 - eps), 1 + eps)
        # pessimistic bound: the constant where it is the smaller objective
        if ratio.item() * advantage <= inside * advantage:
            return -ratio * advantage
        return new.new_tensor(-inside * advantage)

    def squared(self, value: Tensor, old: float, target: float) -> Tensor:
        eps = self.settings.value_clip
        plain = 0.5 * (value - target) ** 2
        if eps is None or abs(value.item() - old) <= eps:
            return plain
        held = 0.5 * (old + math.copysign(eps, value.item() - old) - target) ** 2
        return plain if plain.item() >= held else value.new_tensor(held)

    def step(self, policy_loss: Tensor, value_loss: Tensor) -> dict[str, Tensor]:
        """Clip each role's gradient by its own norm; Loshchilov & Hutter's AdamW, no decay for the head."""
        s, gradients = self.settings, {}
        self.steps += 1
        for role, loss in (("policy", policy_loss), ("value", value_loss)):
            leaves = self.named(role)
            found = torch.autograd.grad(loss, list(leaves.values()))
            norm = math.sqrt(sum((g**2).sum().item() for g in found))
            factor = min(1.0, s.max_norm / (norm + 1e-6))
            for (name, leaf), g in zip(leaves.items(), found, strict=True):
                gradients[name] = g * factor
                m, v = self.moments.get(name, (torch.zeros_like(leaf), torch.zeros_like(leaf)))
                m, v = 0.9 * m + 0.1 * gradients[name], 0.999 * v + 0.001 * gradients[name] ** 2
                self.moments[name] = (m, v)
                move = (m / (1 - 0.9**self.steps)) / ((v / (1 - 0.999**self.steps)).sqrt() + s.epsilon)
                decay = 0.0 if "/head/" in name else s.weight_decay
                leaf.data = leaf.data - s.rate * decay * leaf.data - s.rate * move
        return gradients
