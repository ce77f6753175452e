"""Bytes that a layer keeps for backward, a token: by Transformers' modules with PEFT, and by the fast path."""

from __future__ import annotations

import torch
from transformers import LlamaForCausalLM
from world import Phases, in_dtype, llama_config, peak_bytes, report, rows_of_tokens, settings, tokenizer

from models.backbone.logprobs import make_rows
from models.backbone.settings import AdapterConfig
from models.roles.shared_base import SharedBase

imports = peak_bytes()
case = settings()
phases = Phases()
torch.manual_seed(0)
found: dict[tuple[bool, int], int] = {}
for layers in (2, 3):  # the difference is one layer's
    config = llama_config(case["size"])
    config.num_hidden_layers = layers
    base = SharedBase(in_dtype(LlamaForCausalLM(config), case), tokenizer(size=case["size"]))
    base.add_role("policy", AdapterConfig(rank=16, alpha=32), trainable=True)
    rows = make_rows(rows_of_tokens(4, 32, 32, seed=0), rows_of_tokens(4, 96, 96, seed=1), 0, "cpu")
    for fast in (False, True):
        base.fast, kept = fast, dict[int, int]()

        def pack(t: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            if not isinstance(t, torch.nn.Parameter):
                kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with base.training("policy"), base.role("policy") as view, phases.phase("forward"):
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                states = view.states(rows.ids, rows.mask, rows.response_positions())
            for saved in getattr(states.grad_fn, "saved_layers", ()):
                for t in (saved.x, saved.qkv, *(saved.grids or ()), saved.mixed, saved.middle, saved.gu):
                    if t is not None:
                        pack(t)
            found[fast, layers] = sum(kept.values())
        del states
tokens = rows.ids.numel()
by_modules, by_fast_path = ((found[fast, 3] - found[fast, 2]) / tokens for fast in (False, True))
report(phases, imports, by_modules=by_modules, by_fast_path=by_fast_path)
