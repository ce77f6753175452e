"""A tiny sequence classifier with random weights, in a folder. Not a test file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from tests.conftest import WORDS, word_tokenizer


def save_classifier(folder: Path, labels: Sequence[str] = ("class0",)) -> PreTrainedModel:
    """Saves the model and its tokenizer; the model, in evaluation mode."""
    config = AutoConfig.for_model(
        "llama", vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=32, num_labels=len(labels),
    )  # fmt: skip
    config.id2label = dict(enumerate(labels))
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(folder)
    word_tokenizer(pad_is_eos=True).save_pretrained(folder)
    return model
