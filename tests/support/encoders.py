"""Tiny encoders with random weights, each in a folder with its tokenizer. Not a test file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from transformers import AutoConfig, AutoModelForMaskedLM

from tests.conftest import WORDS, word_tokenizer

SIZES = {
    "vocab_size": len(WORDS) + 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 66,
    "pad_token_id": 0,
}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "electra": {"embedding_size": 16},
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    "modernbert": {"local_attention": 4, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
}


def save_encoder(folder: Path, family: str = "modernbert", seed: int = 0) -> Any:
    """Saves the model, wide weights so that differences show, and its tokenizer; the model, in evaluation mode.

    Only the special tokens of BERT, which are no BOS and no EOS, are known to the tokenizer as such.
    """
    config = AutoConfig.for_model(family, **SIZES | ENCODERS[family])
    torch.manual_seed(seed)
    model = AutoModelForMaskedLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.normal_(0.0, 0.3)
    model.save_pretrained(folder)
    made = word_tokenizer(words=[*WORDS, "<mask>"])
    backend = made.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A <eos> $B <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    tokenizer = type(made)(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<bos>",
        sep_token="<eos>",
        mask_token="<mask>",
    )
    tokenizer.save_pretrained(folder)
    return model
