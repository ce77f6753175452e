"""Perplexity of responses under the frozen base, by hand, and log-likelihoods as plain Transformers has them."""

from __future__ import annotations

import math

import pytest
import torch

from evaluation.likelihood import log_likelihoods, under_base
from models.backbone.oom_retry import OOMRetry


def test_stop_tokens_are_left_out_and_tokens_weigh_alike() -> None:
    """1 nat over 2 tokens and 3 over 1: perplexity exp(4 / 3); the stop token's 9 nats count for nothing."""
    found = under_base([[-0.25, -0.75, -9.0], [-3.0], [-9.0], []], [2, 1, 0, 0])
    assert found["base_perplexity"] == pytest.approx(math.exp(4 / 3))
    assert found["scores"]["nats_under_base"] == [0.5, 3.0, None, None]
    assert under_base([[-9.0]], [0]) == {"scores": {"nats_under_base": [None]}}


def test_log_likelihoods_are_those_of_plain_transformers(base) -> None:
    queries, responses = [[5, 6, 7], [8]], [[9, 10], [11, 12, 13, 4]]
    found = log_likelihoods(base, "base", queries, responses, pad_id=0, batch=1, memory=OOMRetry("rows at once"))
    for query, response, row in zip(queries, responses, found, strict=True):
        ids = torch.tensor([query + response])
        with torch.no_grad():
            logprobs = base.lm(ids).logits[0].log_softmax(-1)
        expected = [logprobs[len(query) - 1 + i, token].item() for i, token in enumerate(response)]
        assert row == pytest.approx(expected, abs=1e-4)
