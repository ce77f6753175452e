"""Run by torchrun, or called by itself, in test_processes: tiny stages whose numbers must not hang on how many run.

Each process writes what it ended in: weights as nested lists, metrics of every step, and the answers it sampled.
Every process but the first is short of memory in some of the cases.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file

from data.common.user_functions import load_function
from data.records import Demonstration, Document, RankedAnswers
from data.splits import Corpus, Split
from evaluation.best_of import Chooser
from evaluation.generations import Generations
from evaluation.held_out import Evaluator, System
from evaluation.settings import EvaluationConfig
from models.backbone.logprobs import make_rows
from models.backbone.processes import Processes
from models.hub.spec import BaseModelSpec
from models.roles.shared_base import SharedBase
from models.sampling.generate import Generated
from reward.settings import RewardPart
from reward.terms.composition import compose
from stages import continued, distil, pretrain, rankings, reward_model, sft
from stages.ppo import stage as ppo_stage
from stages.ppo.rollout import policy_pass
from stages.ppo.update import PPO
from stages.settings import (
    ContinuedConfig,
    DistilConfig,
    PPOConfig,
    PretrainConfig,
    PretrainModel,
    RankingsConfig,
    RewardConfig,
    SFTConfig,
)
from stages.stage import StageContext
from stages.training import chunks, next_token, sft_trainer
from stages.training.masked import MaskedTokens
from tests.conftest import make_base, randomise, tiny_lm, word_tokenizer
from tests.support.ppo import make_context, make_ppo, make_prompt

LENGTHS = (1, 9, 2, 14, 3, 1, 11, 5, 2, 7, 1)  # 11 rows: neither batches of 4 nor two processes divide them
CASES: dict[str, dict[str, Any]] = {
    "rows": {"batch": 4, "micro_batch": 2},
    "by tokens": {"batch": 8, "batch_tokens": 24},
    "fewer rows than processes": {"batch": 1, "micro_batch": 1},
    "the same micro-batches": {"batch": 6, "micro_batch": 2},
}
SHORT_OF_MEMORY = {"by tokens": {"batch": 8, "batch_tokens": 40}}
SHORT = {"source": "length", "max_length": 3}
FUNCTION = {"source": "several_processes.py:longest_first", "name": "longest"}
ALIGNED: dict[str, dict[str, Any]] = {
    "odd": {"rollouts": 6, "minibatches": 2, "whiten_rewards": True, "kl": "adaptive", "kl_target": 0.01},
    "a row a minibatch": {"rollouts": 2, "minibatches": 2},
    "the same micro-batches": {"rollouts": 6, "minibatches": 2, "micro_batch": 1, "old_logprobs": "recompute"},
    "the same micro-batches by tokens": {"rollouts": 9, "micro_tokens": 20, "old_logprobs": "recompute"},
    "with a pretraining loss": {
        "rollouts": 5,
        "micro_batch": 2,
        "old_logprobs": "recompute",
        "ptx_coef": 2.0,
        "ptx_batch": 5,
        "ptx_max_tokens": 8,
    },
    "one row": {"rollouts": 1, "reward": [FUNCTION | {"normalise": True}]},
    "all answers cut": {"rollouts": 4, "max_new_tokens": 1, "micro_tokens": 30},
    "a function of all rows": {
        "rollouts": 5,
        "reward": [FUNCTION | {"normalise": True}, {"source": "length", "max_length": 3}],
    },
}


def longest_first(prompts: list[str], completions: list[str]) -> list[float]:
    """Score by length and place: what it says of one answer depends on all that it sees at once, and it needs one."""
    top = max(len(c) for c in completions) + 1
    return [len(c) / top + i / len(completions) for i, c in enumerate(completions)]


@contextmanager
def short_of_memory(rank: int) -> Iterator[None]:
    """SFT's losses of several rows that are not short fit into no process but the first."""
    real = sft_trainer.response_nll

    def nll(lm: Any, ids: Any, *rest: Any, **more: Any) -> Any:
        if rank > 0 and len(ids) > 1 and ids.numel() > 20:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(lm, ids, *rest, **more)

    sft_trainer.response_nll = nll
    try:
        yield
    finally:
        sft_trainer.response_nll = real


def untouched() -> list[Any]:
    """Sums of gradients where no process has one, one has, and all have."""
    processes = Processes("auto")
    parameters = [torch.nn.Parameter(torch.zeros(n)) for n in (1, 2, 3)]
    parameters[1].grad = torch.ones(2) if processes.rank == processes.world_size - 1 else None
    parameters[2].grad = torch.full((3,), 1.0 / processes.world_size)
    processes.sum_gradients(parameters)
    return [None if p.grad is None else p.grad.tolist() for p in parameters]


def whole_base() -> SharedBase:
    """The same in each process."""
    return make_base(attention_dropout=0.0)


BASE: list[Callable[[], SharedBase]] = [whole_base]  # the first one makes the base of each stage


def context_of(folder: Path, name: str, corpus: Corpus, base: SharedBase | None = None) -> StageContext:
    out = folder / f"{name}-{os.environ.get('RANK', '0')}"
    out.mkdir()
    return make_context(base or BASE[0](), out, corpus, recipe_folder=Path(__file__).parent)


def ended(context: StageContext, role: str) -> dict[str, Any]:
    weights = {n: p.detach().flatten().tolist() for n, p in context.base.parameters_of(role).items()}
    log = context.out / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return {"weights": weights, "log": rows}


def tuned(
    folder: Path, name: str, settings: dict[str, Any], dropout: float = 0.0, base: SharedBase | None = None
) -> dict[str, Any]:
    rows = tuple(
        Demonstration(prompt=make_prompt(f"w{i} w{i + 1}"), answer=" ".join(f"w{(i * 7 + j) % 30}" for j in range(n)))
        for i, n in enumerate(LENGTHS)
    )
    split = Split(train=rows, held_out=rows[1:8])  # seven, in batches that no number of processes divides
    context = context_of(folder, f"sft {name}", Corpus(demonstrations=split), base)
    context = replace(context, adapter=context.adapter.model_copy(update={"dropout": dropout}))
    fixed: dict[str, Any] = {"epochs": 2, "learning_rate": 1e-3, "keep": "best", "held_out_every": 2}
    sft.run(context, SFTConfig(**fixed | settings))
    return ended(context, "sft")


def started(folder: Path, objective: Literal["causal", "masked"] = "causal") -> dict[str, Any]:
    """A base from scratch, on documents of 1 to 9 words, in batches that no number of processes divides."""
    context = context_of(folder, f"pretrain_{objective}", Corpus())
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<mask>", "cls_token": "<bos>", "sep_token": "<eos>"})
    texts = (" ".join(f"w{(i + j) % 30}" for j in range(1 + i * 5 % 9)) for i in range(13))
    rows = list(chunks.encode(tokenizer, texts))
    shape = PretrainModel(layers=1, width=16, feed_forward=16, heads=2, context=32)
    config = PretrainConfig(steps=4, batch=5, model=shape, tokenizer="words", objective=objective)
    lm = pretrain.new_model(tokenizer, config, 0)
    predicted = MaskedTokens.of(tokenizer, 0) if objective == "masked" else next_token.NEXT_TOKENS
    next_token.train(context, lm, rows, pretrain.steps_of(lm, config, predicted))
    log = (context.out / "metrics.jsonl").read_text().splitlines() if context.processes.is_main else []
    weights = {n: p.detach().flatten().tolist() for n, p in lm.named_parameters()}
    return {"weights": weights, "log": [json.loads(line) for line in log]}


def trained_further(folder: Path) -> dict[str, Any]:
    """A base trained further, and its loss on held-out documents before and after."""
    given = folder / "given"
    texts = [" ".join(f"w{(i + j) % 30}" for j in range(1 + i * 5 % 9)) for i in range(20)]
    documents = tuple(Document(text=text, group=text) for text in texts)
    context = context_of(folder, "continued", Corpus(documents=Split(train=documents[:13], held_out=documents[13:])))
    if context.processes.is_main:
        tiny_lm("llama", 0, initializer_range=0.1).save_pretrained(given)
        word_tokenizer().save_pretrained(given)
    context.processes.barrier()
    config = ContinuedConfig(steps=4, batch=5, context=8, learning_rate=1e-3)
    result = continued.run(context, config, BaseModelSpec(name="tiny", source=str(given)), torch.float32)
    log = (context.out / "metrics.jsonl").read_text().splitlines() if context.processes.is_main else []
    file = context.out / "model" / "model.safetensors"
    made = load_file(file) if file.is_file() else {}
    weights = {n: p.flatten().tolist() for n, p in made.items()}
    losses = {k: v for k, v in result.metrics.items() if k.startswith("held_out_nll")}
    return {"weights": weights, "log": [json.loads(line) for line in log], "losses": losses}


def distilled(folder: Path) -> dict[str, Any]:
    """A student of a teacher on another base, by distributions of what that one says to five prompts."""
    prompts = tuple(make_prompt(f"w{i} " + "w4 " * (i % 3)) for i in range(7))
    context = context_of(folder, "distil", Corpus(prompts=Split(train=prompts[:5], held_out=prompts[5:])))
    base = make_base(seed=5)
    teacher = distil.Teacher(name="t", base=base, role="base", renderer=context.renderer)
    settings = {"teacher": "t", "loss": "logits", "epochs": 2, "batch": 3, "micro_batch": 1, "learning_rate": 1e-3}
    result = distil.run(context, DistilConfig(**settings | {"max_new_tokens": 5, "sampling_temperature": 1.0}), teacher)
    return ended(context, "distilled") | {"agreement": result.metrics["agreement"]}


def answered(folder: Path) -> dict[str, Any]:
    """Evaluation of 5 prompts: samples, greedy answers, the best of 3 by a function, and a gold function's scores."""
    context = context_of(folder, "evaluation", Corpus())
    context.base.add_role("sft", context.adapter)
    randomise(context.base, "sft", 1)
    here = Path(__file__).parent
    evaluator = Evaluator(
        base=context.base,
        renderer=context.renderer,
        config=EvaluationConfig(batch=2),
        prompts=[make_prompt(f"w{i} " + "w4 " * (i % 3)) for i in range(5)],
        max_new_tokens=6,
        seed=0,
        gold=load_function("several_processes.py:longest_first", here),
        generations=Generations(folder / "generations", context.processes.is_main),
        processes=context.processes,
    )
    chooser = Chooser(reward=compose([RewardPart(**FUNCTION)], None, here))
    plain = System(name="sft", base=context.base, role="sft", renderer=context.renderer)
    best = System(name="best", base=context.base, role="sft", renderer=context.renderer, best_of=3, chooser=chooser)
    found = {"plain": (plain, "sampled"), "greedy": (plain, "greedy"), "best": (best, "sampled")}
    said = {name: evaluator.run(system, decoding) for name, (system, decoding) in found.items()}  # type: ignore[arg-type]
    return {n: {"ids": s.token_ids, "finished": s.finished, "gold": s.gold} for n, s in said.items()}


def ranked(folder: Path, micro_batch: int, batch: int = 4, epochs: int = 2) -> dict[str, Any]:
    rows = tuple(
        RankedAnswers(
            prompt=make_prompt(f"w{i % 9} w3"),
            answers=tuple(f"w{i} w{j} " + "w20 " * j for j in range(2 + i % 3)),
            ranks=tuple(range(2 + i % 3)),
        )
        for i in range(11)
    )
    context = context_of(folder, f"reward {batch} {micro_batch}", Corpus(rankings=Split(train=rows)))
    context.base.add_role("sft", context.adapter)
    settings = RewardConfig(
        epochs=epochs, learning_rate=1e-3, batch=batch, micro_batch=micro_batch, calibration_samples=4, keep="best"
    )
    parts, _ = reward_model.encode(context, rows, settings)
    reward_model.train_all(context, {"reward": parts}, settings, parts[1:8])
    return ended(context, "reward")


def sampled(folder: Path) -> list[str]:
    prompts = [make_prompt(f"w{i} " + "w4 " * (i % 5)) for i in range(7)]
    split = Split(train=tuple(prompts[:5]), held_out=tuple(prompts[5:]))
    context = context_of(folder, "rankings", Corpus(prompts=split))
    context.base.add_role("sft", context.adapter)
    randomise(context.base, "sft", 1)
    settings = RankingsConfig(
        annotator="several_processes.py:longest_first", prompts=5, held_out_prompts=2, answers=3, batch=2, noise=0.5,
        max_new_tokens=9,
    )  # fmt: skip
    rankings.run(context, settings)
    file = context.out / rankings.FILE
    return file.read_text().splitlines() if file.exists() else []


def aligned(folder: Path, name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Weights of policy and value, and every response of every rollout, by its prompt."""
    prompts = tuple(make_prompt(f"w{i} w{i + 1} " + "w4 " * (i % 3)) for i in range(9))
    documents = tuple(Document(text=" ".join(["w7"] * n), group=str(n)) for n in LENGTHS)
    corpus = Corpus(prompts=Split(train=prompts), documents=Split(train=documents))
    context = context_of(folder, f"ppo {name}", corpus)
    context.base.add_role("reference", context.adapter)
    randomise(context.base, "reference", 1)
    seen: list[Any] = []
    rollout = PPO.rollout

    def watched(self: PPO) -> Any:
        made = rollout(self)
        samples = made[0]
        rows = zip([p.text for p in samples.prompts], samples.responses, strict=True)
        seen.append([(text, list(ids)) for text, ids in rows])
        return made

    PPO.rollout = watched  # type: ignore[method-assign]
    fixed: dict[str, Any] = {"updates": 2, "epochs": 2, "learning_rate": 1e-3, "max_new_tokens": 7, "self_check": False}
    fixed |= {"value": {"init": "sft", "head": "zero"}, "reward": [SHORT]}
    config = PPOConfig(**fixed | settings)
    try:
        ppo_stage.run(context, config, None)
    finally:
        PPO.rollout = rollout  # type: ignore[method-assign]
    weights = ended(context, "policy")["weights"] | ended(context, "value")["weights"]
    return {"weights": weights, "responses": seen, "log": ended(context, "policy")["log"]}


def half_base() -> SharedBase:
    """With weights as wide as models have them: those of other tests make differences show, and bf16's rounding too."""
    lm = tiny_lm("llama", 0, attention_dropout=0.0, initializer_range=0.02)
    return SharedBase(lm.bfloat16(), word_tokenizer(), name="tiny-bf16")


def given_logprobs(base: SharedBase, role: str) -> list[float]:
    """Log-probabilities of tokens that nobody sampled, in one batch."""
    queries, responses = [[1, 5 + i, 9] for i in range(4)], [[3 + i, 20, 7 + 2 * i, 2][i:] for i in range(4)]
    with base.role(role) as view, torch.no_grad():
        return policy_pass(view, make_rows(queries, responses, 0, "cpu"), 1.0)[0].tolist()


def given_responses(role: Any, prompts: Any, *, params: Any, noise: Any) -> Generated:
    """An engine that takes responses from the prompts, so that rounding chooses no token."""
    ids = [[3 + (sum(p) + j) % 20 for j in range(1 + sum(p) % 5)] + [2] for p in prompts]
    return Generated(ids=ids, finished=[True] * len(ids))


def in_half(folder: Path, micro_batch: int = 3) -> dict[str, dict[str, Any]]:
    """SFT and PPO on a bf16 base: losses, what was added to the weights, and what the result says of given tokens."""
    base = half_base()
    log = tuned(folder, "sft bf16", {"batch": 8, "micro_batch": 8}, base=base)["log"]
    added = [p.flatten() for n, p in base.parameters_of("sft").items() if "lora_B" in n]  # starts as zeros
    sft_found = {"losses": [row["loss"] for row in log], "update": torch.cat(added).tolist()}
    sft_found["logprobs"] = given_logprobs(base, "sft")
    out = folder / f"ppo-bf16-{os.environ.get('RANK', '0')}"
    out.mkdir()
    ppo = make_ppo(out, base=half_base(), engine=given_responses, minibatches=2, micro_batch=micro_batch, updates=2)
    with torch.no_grad():  # adapters, too, as wide as trained ones are
        for p in (p for role in ("reference", "policy", "value") for p in ppo.base.parameters_of(role).values()):
            p.mul_(0.2)
    before = [p.detach().clone() for p in ppo.policy_parameters.values()]
    metrics = list(ppo.train())
    added = [(p.detach() - b).flatten() for p, b in zip(ppo.policy_parameters.values(), before, strict=True)]
    losses = [row[name] for row in metrics for name in ("ppo/loss/policy", "ppo/loss/value")]
    found = {"losses": losses, "update": torch.cat(added).tolist(), "logprobs": given_logprobs(ppo.base, "policy")}
    return {"sft": sft_found, "ppo": found}


def everything(folder: Path) -> dict[str, Any]:
    """What this process ended in."""
    processes = Processes("auto")
    found = {
        "world": processes.world_size,
        "untouched": untouched(),
        "pretrain": started(folder),
        "encoder": started(folder, "masked"),
        "continued": trained_further(folder),
        "distil": distilled(folder),
        "sft": {name: tuned(folder, name, settings) for name, settings in CASES.items()},
        "reward": {f"{size} of {batch}": ranked(folder, size, batch) for size, batch in ((1, 4), (4, 4))},
        "rankings": sampled(folder),
        "ppo": {name: aligned(folder, name, settings) for name, settings in ALIGNED.items()},
        "evaluation": answered(folder),
        "bf16": in_half(folder),
        "masked": tuned(folder, "dropout", {"batch": 4, "micro_batch": 1}, dropout=0.2),
    }
    with short_of_memory(processes.rank):
        for name, settings in SHORT_OF_MEMORY.items():
            found["sft"][f"{name}, short of memory"] = tuned(folder, f"{name} short", settings)
    return found


def main(folder: Path) -> None:
    gc.freeze()  # as in conftest
    found = everything(folder)
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
