"""What stages compute with while a role is entered: states, log-probabilities and logits, by the fast path or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from models.backbone.forward import hidden_states, logits_of
from models.backbone.logprobs import Packing, token_logprobs
from models.backbone.scalar_head import ScalarHead
from models.backbone.sharding import output_held
from models.fast.hidden_states import fast_states
from models.fast.logprobs import block_logprobs, output_weight
from models.fast.prefix_cache import PrefixCache
from models.fast.weights import Decoder, decoder_of
from models.roles.together import KnownStates


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleView:
    """A role while it is entered: the model with its adapter selected, and its head."""

    name: str
    lm: Any
    head: ScalarHead | None
    fast: bool = True  # use the fast path where it knows the architecture
    prefix_cache: PrefixCache | None = None  # states of some rows below all adapters
    known: KnownStates | None = None  # of rows that several roles have been through together

    def decoder(self) -> Decoder | None:
        """The weights, where they are known to be a plain Llama-like decoder; None: the modules must run."""
        return decoder_of(self.lm) if self.fast else None

    def states(self, ids: Tensor, mask: Tensor, positions: Tensor, packing: Packing | None = None) -> Tensor:
        """Last hidden states (N, D) at flat positions (N,) of right-padded rows (B, L), by the fast path or not.

        ``packing``: of the rows, where it is known; the device is asked for less.
        """
        if self.known is not None and self.known.ids is ids:
            return self.known.states.flatten(0, 1)[positions]
        return fast_states(self.decoder(), self.lm, ids, mask, positions, self.prefix_cache, packing)

    def logprobs(
        self, hidden: Tensor, targets: Tensor, temperature: float = 1.0, entropy_gradient: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies (N,) of tokens; see ``models.backbone.logprobs.token_logprobs``."""
        weight = output_weight(self.lm) if self.fast and not entropy_gradient else None
        if weight is not None:
            return block_logprobs(hidden, targets, weight, temperature)
        with output_held(self.lm):
            return token_logprobs(hidden, targets, self.logits, temperature, entropy_gradient=entropy_gradient)

    def hidden(self, ids: Tensor, mask: Tensor, position_ids: Tensor | None = None, cache: Any = None) -> Tensor:
        """Last hidden states (B, L, D) by Transformers' own modules; see ``models.backbone.forward.hidden_states``."""
        return hidden_states(self.lm, ids, mask, position_ids, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D)."""
        return logits_of(self.lm, hidden)
