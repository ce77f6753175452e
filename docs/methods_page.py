"""The page of ways to tune: what each trains, how much, and with what it goes together."""

from __future__ import annotations

from typing import Any

from docs.page_parts import NOTE, cell

ABOUT_METHODS = """\
`adapter.method` says how every role of a run is tuned. All of them stand on the one base, which is never changed; a
test runs every method in every stage and asks that exactly these tensors move, in fp32 on a bf16 base as well. QLoRA is
`lora` with `runtime.quantize: nf4`.

    adapter: {method: dora, rank: 16, alpha: 32}
    adapter: {method: freeze, layers: upper_half}

Adapters of two kinds (LoRA's, of which `dora`, `pissa` and `olora` are, AdaLoRA's and (IA)3's) cannot stand on one base
at a time.

By `adalora` ranks fall from `init_rank` to a mean of `rank` between the two shares of a stage's steps that `budget`
names, each role's by a budget of its own and in each stage anew: SFT, the reward stage and PPO each begin with all
ranks, of which those that went in the stage before are zeros that may come back. `orthogonality` is part of each step's
gradient and of no loss that is shown. Its scaling is PEFT's, `alpha` / `init_rank`.

By `prompt_tuning`, `p_tuning` and `prefix_tuning` every row has `virtual_tokens` before it, and nothing of the base is
adapted: see [methods of virtual tokens](../how-to/virtual_tokens.md).
"""
ABOUT_BESIDE = """\
## Embeddings, output layer and new tokens

    adapter: {modules_to_save: [embed_tokens, lm_head]}
    adapter: {new_tokens: ["<think>", "</think>"]}

`modules_to_save` trains the embeddings, the output layer or both whole, beside the adapter, by PEFT. `new_tokens` adds
tokens to the tokenizer and trains their rows alone: ids behind the vocabulary, rows that the base has to spare or,
where it has none, new ones that begin as the mean of all others. Each role has its own, in at least fp32, and the base
stays as it is. A role with a scalar head (reward, value) never reads the output layer, and trains the embeddings alone.

Where the base ties embeddings and output layer, they are one tensor for each role as well. PEFT keeps them tied for
LoRA's kinds of adapters and embeddings called `embed_tokens`; elsewhere `modules_to_save` is refused. `new_tokens` is
refused where an untied output layer has a bias, which PEFT's rows leave out, and beside `modules_to_save`, which trains
all rows.

Passes are those of Transformers' modules, without trivet's fast path. `runtime.sharding: fsdp2` and rollouts by vLLM
are refused, and so is `ppo.share_prefix_layers: false`, since no layer has the same input in all roles anyway. With
`full`, new tokens are trained as everything is; `runtime.sharding: fsdp2` is refused there too.

An exported adapter is PEFT's: its weights hold the whole modules or the rows, and its folder the tokenizer.
`AutoPeftModelForCausalLM` gives the base the rows that it lacks; in plain PEFT call
`model.resize_token_embeddings(len(tokenizer))` before. Merged, the model has all of it, tied where the base is.
"""
SHAPE: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49_152,
    "tie_word_embeddings": True,
}


def methods_page() -> str:
    """``methods.md``: what each way of tuning trains, in which stages, and what it does not go with."""
    from models.backbone.settings import METHODS, AdapterConfig
    from pipelines.stages.table import STAGES

    out = ["# Methods of tuning", "", NOTE, *ABOUT_METHODS.splitlines(), ""]
    out += ["| method | what it trains | settings that act | source |", "| --- | --- | --- | --- |"]
    for name, method in METHODS.items():
        settings = ", ".join(f"`{one}`" for one in method.settings) or "none"
        out.append(f"| `{name}` | {cell(method.trains)} | {settings} | {method.source} |")
    stages = [name for name, stage in STAGES.items() if stage.trains and stage.on_base]
    out += [
        "",
        "## Stages",
        "",
        "Numbers that a role trains, on a base of SmolLM2-135M's shape, with the defaults.",
        "",
    ]
    out += [f"| method | {' | '.join(stages)} |", "| --- |" + " ---: |" * len(stages)]
    for name in METHODS:
        count = f"{trained_numbers(AdapterConfig(method=name)):,}"
        out.append(f"| `{name}` | " + " | ".join([count] * len(stages)) + " |")
    out += [
        "",
        "PPO trains two such roles, policy and value. The reward and value heads come on top, a number for each of the",
        "base's width.",
        "",
    ]
    out += [*ABOUT_BESIDE.splitlines(), "", "## What goes with what", ""]
    out += ["| method | written as | fast path | `runtime.quantize` | `runtime.sharding` | rollouts by vLLM |"]
    out += ["| --- | --- | --- | --- | --- | --- |"]
    for name, method in METHODS.items():
        form = "a model" if method.copies else "a LoRA adapter" if method.plain else "an adapter of PEFT"
        fast = "yes" if method.plain else "to sample and score" if method.copies else "no"
        takes = ("yes" if one else "refused" for one in (method.four_bits, method.divided, method.plain))
        out.append(f"| `{name}` | {form} | {fast} | {' | '.join(takes)} |")
    return "\n".join(out) + "\n"


def trained_numbers(adapter: Any) -> int:
    """Numbers that a role trains on a base of SmolLM2-135M's shape, as PEFT or a copy makes it, without weights."""
    from peft import get_peft_model
    from transformers import LlamaConfig

    from models.backbone.architecture import linear_layers, without_weights
    from models.roles.methods import role_config, trained_of
    from models.roles.prompts import numbers_of

    lm = without_weights(LlamaConfig(**SHAPE))
    sizes, linear = {name: p.numel() for name, p in lm.named_parameters()}, linear_layers(lm)
    if adapter.tuning.copies:
        chosen = sizes.keys() if adapter.method == "full" else trained_of(lm, linear, adapter)
        return sum(sizes[name] for name in chosen)
    if adapter.tuning.virtual:
        return numbers_of(lm, adapter)
    made = get_peft_model(lm, role_config(lm, linear, None, adapter))
    found = sum(p.numel() for p in made.parameters() if p.requires_grad)
    return found // 2 if adapter.tuning.residual else found
