"""What a reward can be made of, by name: ranking losses, poolings and rules. The recipe is checked against them.

An entry here is all that a new one needs besides its function. Light: imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from data.common.regex_timeout import compiled
from data.common.tables import late


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A ranking loss: ``function(scores, ranks, mask)``, each (B, K), gives one loss a ranking, (B,).

    A pairwise one takes ``margins`` (B, K, K) or None and ``label_smoothing`` as well.
    """

    function: Callable[..., Any]
    pairwise: bool = False


LOSSES: dict[str, Loss] = {
    "pairs": Loss(function=late("reward.losses:pairs_loss"), pairwise=True),
    "plackett_luce": Loss(function=late("reward.losses:plackett_luce_loss")),
}


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """How a response's hidden states become its score: ``function(states, head)`` of states (L, D) gives a scalar ().

    ``last_only``: it reads the last state alone, so that no other is computed. ``attention``: the head has an attention
    vector, which is trained and stored with it. ``padded`` does the same for padded rows at once, where there is such a
    way: ``padded(hidden, head, rows)`` of (B, L, D) gives (B,). ``packed`` likewise for the states of one response
    after another: ``packed(states, head, lengths)`` of (T, D) and B lengths gives (B,).
    """

    function: Callable[..., Any]
    last_only: bool = False
    attention: bool = False
    padded: Callable[..., Any] | None = None
    packed: Callable[..., Any] | None = None


POOLINGS: dict[str, Pooling] = {
    "last": Pooling(
        function=late("reward.pooling:last"),
        last_only=True,
        padded=late("reward.pooling:last_of_padded"),
        packed=late("reward.pooling:last_of_packed"),
    ),
    "mean": Pooling(
        function=late("reward.pooling:mean"),
        padded=late("reward.pooling:mean_of_padded"),
        packed=late("reward.pooling:mean_of_packed"),
    ),
    "learned": Pooling(
        function=late("reward.pooling:learned"), attention=True, padded=late("reward.pooling:learned_of_padded")
    ),
}


def _nothing_wrong(part: Any) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A reward by rule: ``make(part)`` of a ``RewardPart`` gives a function of ``Samples``, one score (B,) each.

    ``settings``: keys of ``RewardPart`` that belong to it alone; ``check`` raises ValueError where they are wrong.
    """

    make: Callable[..., Any]
    settings: tuple[str, ...] = ()
    check: Callable[[Any], None] = _nothing_wrong


def _check_regex(part: Any) -> None:
    if part.pattern is None:
        raise ValueError("source 'regex' needs a `pattern`, such as pattern: '\\bplease\\b'")
    if not part.pattern and not part.count:
        raise ValueError("pattern '' is found in every response, so that each scores 1: write what is searched for")
    try:
        compiled(part.pattern)
    except ValueError as error:
        raise ValueError(f"pattern {part.pattern!r} is no regular expression: {error}") from None


def _check_length(part: Any) -> None:
    if part.min_length is None and part.max_length is None:
        raise ValueError("source 'length' needs `min_length`, `max_length` or both")
    if part.min_length == 0 and part.max_length is None:
        raise ValueError("min_length 0 is kept by every response, so that each scores 0: raise it, or give max_length")
    if part.min_length is not None and part.max_length is not None and part.min_length > part.max_length:
        raise ValueError(f"min_length {part.min_length} is more than max_length {part.max_length}: exchange them")


RULES: dict[str, Rule] = {
    "regex": Rule(make=late("reward.terms.rules:regex"), settings=("pattern", "count"), check=_check_regex),
    "length": Rule(
        make=late("reward.terms.rules:length"), settings=("min_length", "max_length", "unit"), check=_check_length
    ),
}
