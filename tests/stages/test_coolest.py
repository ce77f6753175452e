"""Temperatures that logits cannot be divided by are refused wherever one is given."""

from __future__ import annotations

import pytest
import torch

from data.common.config import COOLEST, greedy_or_warm
from data.common.errors import UserError
from evaluation.settings import EvaluationConfig
from models.sampling.generate import SamplingParams, sample_tokens
from stages.settings import DistilConfig, PPOConfig, RankingsConfig


@pytest.mark.parametrize("temperature", [1e-300, 1e-5, -1.0, float("nan")])
def test_one_that_is_too_cool_is_refused(temperature: float) -> None:
    for config, name in (
        (EvaluationConfig, "temperature"),
        (RankingsConfig, "temperature"),
        (PPOConfig, "temperature"),
        (DistilConfig, "temperature"),
        (DistilConfig, "sampling_temperature"),
    ):
        with pytest.raises(ValueError, match=name):
            config.model_validate({name: temperature})
    with pytest.raises(ValueError, match=r"0, which is greedy decoding, or at least 0.0001"):
        greedy_or_warm(temperature)
    with pytest.raises(UserError, match="temperature"):
        SamplingParams(max_new_tokens=1, stop_ids=[], temperature=temperature)


def test_the_coolest_gives_the_greedy_token_of_large_logits() -> None:
    logits = torch.tensor([[90.0, -90.0, 90.5]])
    assert sample_tokens(logits, torch.tensor([0.5], dtype=torch.float64), COOLEST).tolist() == [2]
    assert SamplingParams(max_new_tokens=1, stop_ids=[], temperature=0.0).temperature == greedy_or_warm(0) == 0
