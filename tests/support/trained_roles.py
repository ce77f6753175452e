"""A tiny base of any precision, and each stage that trains a role of it, with a small rate."""

from __future__ import annotations

from data.records import Demonstration, RankedAnswers
from data.splits import Corpus, Split
from models.roles.shared_base import SharedBase
from reward.terms.composition import WeightedSum
from stages import reward_model, sft
from stages.ppo.update import PPO
from stages.settings import PPOConfig, RewardConfig, SFTConfig
from tests.conftest import tiny_lm, word_tokenizer
from tests.support.ppo import PROMPTS, RAGGED, Injected, first_word_reward, make_context, make_prompt

RATE = 1e-5
DEMONSTRATIONS = tuple(Demonstration(prompt=make_prompt(f"w{i}"), answer=f"w{i} w{i + 1} w{i + 2}") for i in range(12))
RANKINGS = tuple(
    RankedAnswers(prompt=make_prompt(f"w{i}"), answers=(f"w{i} w5 w{i + 1}", f"w{i + 2} w7", "w9"), ranks=(0, 1, 2))
    for i in range(12)
)
CORPUS = Corpus(
    demonstrations=Split(train=DEMONSTRATIONS, held_out=DEMONSTRATIONS[:2]),
    rankings=Split(train=RANKINGS, held_out=RANKINGS[:2]),
    prompts=Split(train=tuple(PROMPTS)),
)


def base_of(dtype, family="llama"):
    """The same weights, which bf16 can hold, in any precision; usual sizes, so that bf16 steps are coarse."""
    lm = tiny_lm(family, initializer_range=0.1)
    for p in lm.parameters():  # alone: a loaded model's rotary frequencies stay fp32 as well
        p.data = p.data.bfloat16().to(dtype)
    return SharedBase(lm, word_tokenizer(), name="tiny")


def context_of(base, out, adapter):
    out.mkdir(parents=True, exist_ok=True)
    context = make_context(base, out, CORPUS)
    object.__setattr__(context, "adapter", adapter)
    return context


def by_sft(context):
    sft.run(context, SFTConfig(epochs=4, learning_rate=RATE, batch=4, micro_batch=4, schedule="constant"))
    return ["sft"]


def by_reward(context):
    config = RewardConfig(
        epochs=4, learning_rate=RATE, batch=4, micro_batch=4, schedule="constant", max_tokens=32, pooling="learned"
    )
    reward_model.run(context, config)
    return ["reward"]


def make_ppo(context, **settings):
    base = context.base
    base.add_role("reference", context.adapter)
    base.add_role("policy", context.adapter, copy_of="reference")
    base.add_role("value", context.adapter, copy_of="reference", head=True)
    config = PPOConfig(
        **({"updates": 4, "rollouts": 8, "epochs": 2, "max_new_tokens": 6, "learning_rate": RATE} | settings),
        schedule="constant",
    )
    return PPO(context, config, PROMPTS, WeightedSum([("test", 1.0, first_word_reward)]), Injected(RAGGED))


def by_ppo(context):
    for _ in make_ppo(context).train():
        pass
    return ["policy", "value"]


STAGES = {"sft": by_sft, "reward": by_reward, "ppo": by_ppo}
