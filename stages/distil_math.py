"""Distillation's mathematics as pure functions of logits. Shapes: N tokens, V vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor


def forward_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """``T^2 KL(p_teacher || p_student)`` of each token, in nats, both distributions softened by a temperature T.

    Hinton et al. 2015 (https://arxiv.org/abs/1503.02531, section 2): the factor keeps the size of the gradients, which
    fall with the square of the temperature. The divergence is the forward one of GKD (Agarwal et al. 2024,
    https://arxiv.org/abs/2306.13649). Of vocabularies that are padded to different sizes the common part is compared.

    Args:
        student: (N, V) logits, which may ask for gradients.
        teacher: (N, V') logits.
        temperature: above 0.

    Returns:
        (N,) in at least fp32.
    """
    common = min(student.shape[-1], teacher.shape[-1])
    log_p, log_q = (_softened(logits[..., :common], temperature) for logits in (teacher, student))
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1)


def _softened(logits: Tensor, temperature: float) -> Tensor:
    """Log-probabilities, at least in fp32: bf16 has three digits."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.log_softmax(logits / temperature, dim=-1)


def agreeing(student: Tensor, teacher: Tensor) -> Tensor:
    """(N,) bool: whether both have the same most probable token."""
    common = min(student.shape[-1], teacher.shape[-1])
    return student[..., :common].argmax(-1) == teacher[..., :common].argmax(-1)
