"""Classes seen along PPO's own path: what the loss reaches, what the reward model is fed, what the draws depend on."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from data.common.errors import UserError
from data.splits import Corpus, Split
from data.template import Renderer
from models.backbone.forward import set_gradient_checkpointing
from models.backbone.processes import Processes
from models.backbone.settings import AdapterConfig
from models.roles.shared_base import SharedBase
from models.sampling.generate import CachedEngine, SamplingParams, generate, sampling_noise
from reward.model import RewardModel, Samples
from reward.terms.composition import ModelReward, WeightedSum
from stages.ppo import stage as ppo_stage
from stages.ppo.kl_controller import AdaptiveKL
from stages.ppo.rollout import micro_batches
from stages.settings import PPOConfig
from tests.conftest import ADAPTER, WORDS, make_base, randomise, tiny_lm, word_tokenizer
from tests.support.ppo import PROMPTS, RAGGED, Injected, make_context, make_ppo, make_prompt


def rolled_out(ppo):
    with ppo.base.training("policy", "value"):
        rollout, _ = ppo.rollout()
        ppo.compute_rewards(rollout)
        ppo.compute_advantages(rollout)
    return rollout


# -- what the loss reaches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_the_loss_reaches_exactly_the_states_that_predict_response_tokens(tmp_path, pad_is_eos):
    """L7, R9, O4, A2: gradient at each hidden state of the last layer; the stop token's is not 0, those of the prompt
    (but its last), of the final token and of padding are exactly 0, for policy and critic."""
    base = make_base(pad_is_eos=pad_is_eos)
    ppo = make_ppo(tmp_path, base=base, engine=Injected(RAGGED), micro_batch=8, gamma=0.9)
    rollout = rolled_out(ppo)
    seen: list[torch.Tensor] = []

    def keep(module, args, output):
        output.requires_grad_(True) if output.is_leaf else None
        output.retain_grad()
        seen.append(output)

    with base.training("policy", "value"):
        hook = base.lm.model.norm.register_forward_hook(keep)
        ppo.backward(rollout, list(range(8)), float(rollout.mask.sum()))
        hook.remove()
        assert len(seen) == 2  # policy, value
        rows = rollout.rows(range(8), ppo.context.pad_id)
        for hidden in seen:
            touched = (hidden.grad.abs().sum(-1) > 0).flatten().nonzero().squeeze(1)
            assert touched.tolist() == rows.response_positions().tolist()


def test_sampled_ids_are_used_as_they_are(tmp_path):
    """R3, R10, R11, R12: nothing is decoded and encoded again, cut rows keep their last token, a sampled padding id
    stays a token, and flags are by row."""
    engine, given = Injected(RAGGED), {}

    def remember(role, prompts, **kwargs):
        given.update({tuple(p): r for p, r in zip(prompts, RAGGED, strict=True)})
        return engine(role, prompts, **kwargs)

    ppo = make_ppo(tmp_path, engine=remember)
    rollout = rolled_out(ppo)
    expected = [given[tuple(q)] for q in rollout.queries]
    assert list(rollout.responses) == expected and sorted(expected) == sorted(RAGGED)
    assert rollout.finished.tolist() == [r[-1] == 2 for r in expected]
    rows = rollout.rows(range(8), 0)
    for i, (q, r) in enumerate(zip(rollout.queries, expected, strict=True)):
        assert rows.ids[i, : len(q) + len(r)].tolist() == [*q, *r]
        assert rows.mask[i].tolist() == [j < len(q) + len(r) for j in range(rows.ids.shape[1])]
    assert rollout.mask.sum(1).tolist() == [len(r) for r in expected]


def test_rows_that_the_update_sees_are_those_that_were_rolled_out(tmp_path):
    """C3, W15: every row is laid out once, micro-batches of any size cover all rows."""
    for size in (1, 3, 8, 99):
        assert sorted(i for part in micro_batches([5, 1, 4, 1, 3, 2, 6, 4], size) for i in part) == list(range(8))


def test_the_reward_models_score_in_ppo_is_that_of_its_own_evaluation(tmp_path):
    """W7, W8, R13, M8: through PPO's path, by text, alone and left-padded; without a gradient, the same after
    training, cut rows included."""
    for pad_is_eos in (False, True):
        base = make_base(pad_is_eos=pad_is_eos)
        base.add_role("reward", ADAPTER, head=True)
        randomise(base, "reward", 5)
        ppo = make_ppo(tmp_path, base=base, learning_rate=1e-2, weight_decay=0.1)
        model = RewardModel(base=base, role="reward", renderer=ppo.context.renderer, score_mean=0.3)
        ppo.reward = WeightedSum([("model", 1.0, ModelReward(model))])
        rollout = rolled_out(ppo)
        assert not rollout.raw_scores.requires_grad
        assert set(rollout.finished.tolist()) == {True, False}
        for i in range(8):
            q, r = rollout.queries[i], rollout.responses[i]
            ids = torch.tensor([[7] * 4 + q + r])
            mask = torch.ones_like(ids, dtype=torch.bool)
            mask[:, :4] = False
            with base.role("reward") as view, torch.no_grad():
                expected = view.head(view.hidden(ids, mask))[0, -1] - 0.3
            assert_close(rollout.raw_scores[i], expected, atol=1e-5, rtol=1e-5)
        # words only, so that text and ids say the same
        texts = ["w5 w6", "w7", "w8 w9 w10"]
        prompts, done = PROMPTS[:3], [True, False, True]
        render = ppo.context.renderer
        queries = [render.prompt_ids(p.messages) for p in prompts]
        responses = [render.answer_ids(p.messages, t, f) for p, t, f in zip(prompts, texts, done, strict=True)]
        samples = Samples(prompts=prompts, queries=queries, responses=responses, texts=texts, finished=done)
        before = ppo.reward(samples)[0]
        assert_close(model.score_texts([p.messages for p in prompts], texts, done), before)
        list(ppo.train())
        assert torch.equal(ppo.reward(samples)[0], before)


def test_a_reward_model_on_another_base_gets_text_in_its_own_ids(tmp_path):
    """M11: another vocabulary; ids of the policy would be nonsense there, so answers pass as text."""
    words = [*WORDS[:7], *reversed(WORDS[7:])]
    base = SharedBase(tiny_lm(seed=3), word_tokenizer(words=words), name="other")
    base.add_role("reward", ADAPTER, head=True)
    renderer = Renderer(base.tokenizer, template="dialogue")
    model = RewardModel(base=base, role="reward", renderer=renderer, takes_ids=False)
    ours = Renderer(word_tokenizer(), template="dialogue")
    prompts, texts = PROMPTS[:2], ["w5 w6", "w7"]
    samples = Samples(
        prompts=prompts,
        queries=[ours.prompt_ids(p.messages) for p in prompts],
        responses=[ours.answer_ids(p.messages, t) for p, t in zip(prompts, texts, strict=True)],
        texts=texts,
        finished=[True, True],
    )
    own = [renderer.prompt_and_answer(p.messages, t) for p, t in zip(prompts, texts, strict=True)]
    assert own[0][1] != list(samples.responses[0])
    assert_close(model.score(samples), model.score_ids([q for q, _ in own], [r for _, r in own]))


def test_what_a_reward_model_on_another_base_cannot_read_is_counted(tmp_path):
    """M11: its limit cuts rows in its own tokens, and its vocabulary lacks words; PPO's metrics have the shares."""
    base = SharedBase(tiny_lm(seed=3), word_tokenizer(words=WORDS[:-20] + [f"z{i}" for i in range(20)]), name="other")
    base.add_role("reward", ADAPTER, head=True)
    renderer = Renderer(base.tokenizer, template="dialogue")
    model = RewardModel(base=base, role="reward", renderer=renderer, takes_ids=False, max_tokens=9)
    ppo = make_ppo(tmp_path, rollouts=8, reward=ModelReward(model))
    for _ in range(2):  # of each rollout by itself
        rollout, numbers = ppo.rollout()
        rows = [
            renderer.fitted(p.messages, t, f, max_tokens=9)
            for p, t, f in zip(rollout.prompts, rollout.texts, rollout.finished.tolist(), strict=True)
        ]
        ids = [i for row in rows for i in (*row.query, *row.response)]
        cut = sum(row.cut_answer or row.cut_prompt for row in rows)
        assert numbers["rollout/scored_cut_fraction"] == cut / 8 > 0
        assert numbers["rollout/scored_unknown_fraction"] == ids.count(renderer.unknown_id) / len(ids) > 0


# -- rollouts ----------------------------------------------------------------------------------------------------


def test_equal_prompts_get_different_samples_and_padding_sides_are_our_own(tmp_path):
    """R16, R1: each row has its own draws; the tokenizer's padding side is never asked."""
    found = []
    for side in ("left", "right"):
        ppo = make_ppo(tmp_path, prompts=[PROMPTS[0]], rollouts=32)
        ppo.base.tokenizer.padding_side = side
        found.append(rolled_out(ppo))
    assert found[0].responses == found[1].responses
    assert len({tuple(r) for r in found[0].responses}) > 8
    assert torch.equal(found[0].logprobs, found[1].logprobs)


def test_shares_of_processes_are_the_whole_and_disjoint():
    """D7, R16: contiguous shares whose sizes differ by at most one."""
    for world_size in (1, 2, 3):
        shares = []
        for rank in range(world_size):
            processes = Processes("cpu")
            processes.rank, processes.world_size = rank, world_size
            shares.append(list(processes.share(8)))
        assert sorted(i for s in shares for i in s) == list(range(8))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_sampling_between_updates_changes_nothing(tmp_path):
    """E10, C11, T18: an evaluation after every update leaves the weights byte for byte as they were without it."""
    found = []
    for look in (False, True):
        ppo = make_ppo(tmp_path, gradient_checkpointing=True)
        for _ in ppo.train():
            if look:
                torch.rand(3)
                with ppo.base.role("policy") as view:
                    generate(
                        CachedEngine(), view, ppo.stream.queries, noise=sampling_noise(8, 4, torch.Generator()),
                        batch=3,
                        params=SamplingParams(max_new_tokens=4, temperature=1.0, stop_ids=(2,), pad_id=0),
                    )  # fmt: skip
        found.append(torch.cat([p.detach().flatten() for p in ppo.policy_parameters.values()]))
    assert torch.equal(*found)


def test_after_updates_the_sampler_draws_from_the_new_policy(tmp_path):
    """R15: greedy tokens of the cached path are the training forward's argmax after large steps."""
    ppo = make_ppo(tmp_path, learning_rate=5e-2, updates=2)
    with ppo.base.role("policy") as view, torch.no_grad():
        row = torch.tensor([ppo.stream.queries[0]])
        start = view.logits(view.hidden(row, torch.ones_like(row, dtype=torch.bool)))
    list(ppo.train())
    with ppo.base.role("policy") as view, torch.no_grad():
        moved = view.logits(view.hidden(row, torch.ones_like(row, dtype=torch.bool)))
        made = generate(
            CachedEngine(),
            view,
            ppo.stream.queries,
            noise=None,
            batch=8,
            params=SamplingParams(max_new_tokens=6, temperature=1.0, stop_ids=(2,), pad_id=0),
        )
        for query, response in zip(ppo.stream.queries, made.ids, strict=True):
            ids = torch.tensor([query + response])
            best = view.logits(view.hidden(ids, torch.ones_like(ids, dtype=torch.bool)))[0].argmax(-1)
            assert best[len(query) - 1 : -1].tolist() == response
    assert (moved - start).abs().max() > 0.1


def test_a_padding_id_outside_the_vocabulary_is_harmless(tmp_path):
    """R17: PPO with padding id 40 of 40 embeddings gives the same bytes as with padding id 0."""
    found = []
    for outside in (False, True):
        base = make_base()
        if outside:
            base.tokenizer.add_special_tokens({"pad_token": "<new pad>"})
            assert base.tokenizer.pad_token_id == 40 == base.lm.get_input_embeddings().weight.shape[0]
        ppo = make_ppo(tmp_path, base=base, updates=1)
        assert ppo.context.pad_id == 0
        metrics = next(iter(ppo.train()))
        assert all(math.isfinite(v) for v in metrics.values())
        base.add_role("reward", ADAPTER, head=True)
        model = RewardModel(base=base, role="reward", renderer=ppo.context.renderer)
        scores = model.score_ids([[5, 9], [7]], [[20, 2], [9, 9, 9, 2]])
        found.append(torch.cat([scores, *(p.detach().flatten() for p in ppo.policy_parameters.values())]))
    assert torch.equal(*found)


def test_rollouts_are_drawn_from_the_policy_by_its_own_distribution(tmp_path):
    """R15, P5, R5: at a temperature near 0 the rollout is the policy's argmax, not the reference's or the critic's."""
    ppo = make_ppo(tmp_path, temperature=1e-4)
    randomise(ppo.base, "policy", 11, scale=1.0)
    rollout = rolled_out(ppo)
    with ppo.base.role("policy") as view, torch.no_grad():
        for query, response in zip(rollout.queries, rollout.responses, strict=True):
            ids = torch.tensor([query + response])
            best = view.logits(view.hidden(ids, torch.ones_like(ids, dtype=torch.bool)))[0].argmax(-1)
            assert best[len(query) - 1 : -1].tolist() == response


@pytest.mark.parametrize("max_new_tokens", [40, 64])
def test_prompts_that_do_not_fit_are_left_out_and_counted_or_refused(tmp_path, max_new_tokens):
    """R14: 64 positions; what fits is used whole, never cut; no room at all is an error before anything runs."""
    prompts = (make_prompt("w1"), make_prompt(" ".join(["w2"] * 30)))
    told: list[str] = []
    context = make_context(make_base(), tmp_path, Corpus(prompts=Split(train=prompts)))
    object.__setattr__(context, "warn", told.append)
    config = PPOConfig(max_new_tokens=max_new_tokens)
    if max_new_tokens == 64:
        with pytest.raises(UserError, match="max_new_tokens"):
            ppo_stage.counted_prompts(context, config)
        return
    kept, tally = ppo_stage.counted_prompts(context, config)
    assert kept == [prompts[0]] and sum(tally.dropped.values()) == 1
    assert "1 prompts are longer than 24 tokens" in told[0]


def test_an_epoch_visits_every_prompt_once_across_updates(tmp_path):
    """R20, C12: 5 prompts in rollouts of 4: each block of 5 in the stream of rows has every prompt once."""
    ppo = make_ppo(tmp_path, prompts=PROMPTS[:5], rollouts=4)
    order = [i for update in range(5) for i in ppo.stream.chosen(update, 4)]
    for at in range(0, 20, 5):
        assert sorted(order[at : at + 5]) == list(range(5))
    assert order[:5] != order[5:10] or order[5:10] != order[10:15]


def test_chunks_of_unsorted_prompts_keep_rows_and_draws(tmp_path):
    """R19: 7 prompts of falling length in chunks of 1, 2, 3: each gets what it gets in one batch, in its own place."""
    base = make_base()
    prompts = [list(range(5, 5 + n)) for n in (9, 7, 8, 3, 5, 1, 2)]
    noise = sampling_noise(7, 6, torch.Generator().manual_seed(0))
    with base.role("base") as view:
        made = [
            generate(
                CachedEngine(),
                view,
                prompts,
                noise=noise,
                batch=batch,
                params=SamplingParams(max_new_tokens=6, temperature=1.0, stop_ids=(2, 7, 11), pad_id=0),
            )
            for batch in (7, 1, 2, 3)
        ]
        alone = CachedEngine()(
            view,
            [prompts[3]],
            noise=noise[3:4],
            params=SamplingParams(max_new_tokens=6, temperature=1.0, stop_ids=(2, 7, 11), pad_id=0),
        )
    assert made[0].ids[3] == alone.ids[0]
    assert all(other == made[0] for other in made[1:])


def test_the_penalty_comes_after_the_clip(tmp_path):
    """W9, W12: a score of 9 clipped at 5 and penalised by 1.5 is 3.5; one of -9 is -6.5."""
    for score in (9.0, -9.0):
        ppo = make_ppo(tmp_path, reward=lambda s, x=score: torch.full((len(s.texts),), x), engine=Injected(RAGGED),
                       score_clip=5.0, missing_eos_penalty=1.5)  # fmt: skip
        rollout = rolled_out(ppo)
        expected = torch.where(rollout.finished, 0.0, -1.5) + (5.0 if score > 0 else -5.0)
        assert_close(rollout.scores, expected)
        assert (~rollout.finished).any()


# -- roles -------------------------------------------------------------------------------------------------------


def test_adapters_are_placed_once_on_every_linear_layer_of_the_blocks():
    """P12, P13: 7 linear layers in each of 2 Llama blocks, two tensors each, whatever roles came before."""
    base = make_base()
    for name in ("sft", "reference", "policy"):
        base.add_role(name, ADAPTER)
    expected = {
        f"model.layers.{i}.{part}.lora_{ab}.policy.weight"
        for i in range(2)
        for part in (
            *(f"self_attn.{x}_proj" for x in "qkvo"),
            *(f"mlp.{x}_proj" for x in ("gate", "up", "down")),
        )
        for ab in "AB"
    }
    assert set(base.parameters_of("policy")) == expected
    assert all(n.count("lora_") <= 1 for n, _ in base.lm.named_parameters())


def test_checkpointed_states_carry_a_gradient_although_the_embeddings_are_frozen():
    """C10: reentrant recomputation would cut the graph without an error."""
    for checkpointing in (False, True):
        base = make_base()
        base.add_role("policy", ADAPTER)
        randomise(base, "policy", 0)
        ids = torch.arange(5, 12)[None]
        with base.training("policy"), base.role("policy") as view:
            set_gradient_checkpointing(base.lm, checkpointing)
            hidden = view.hidden(ids, torch.ones_like(ids, dtype=torch.bool))
            set_gradient_checkpointing(base.lm, False)
            assert hidden.requires_grad


def test_the_fingerprint_of_a_base_follows_every_weight_and_no_role():
    """P11: what manifests record to tell bases apart."""
    base = make_base()
    assert base.fingerprint == make_base().fingerprint != make_base(seed=1).fingerprint
    base.add_role("sft", ADAPTER)
    assert base.base_fingerprint() == base.fingerprint
    with torch.no_grad():
        base.lm.model.layers[1].mlp.down_proj.weight[3, 4] += 1e-3
    assert base.base_fingerprint() != base.fingerprint


def test_the_value_loss_reaches_the_critic_only(tmp_path):
    """P18: advantages of 0 and a wrong critic; the policy's gradient is exactly 0."""
    ppo = make_ppo(tmp_path)
    rollout = rolled_out(ppo)
    rollout.advantages = torch.zeros_like(rollout.advantages)
    with ppo.base.training("policy", "value"):
        ppo.config = ppo.config.model_copy(update={"epochs": 1, "minibatches": 1})
        ppo.update(rollout)
    (record,) = ppo.records
    assert record.policy_grad_norm == 0.0 and record.value_grad_norm > 0.0


def prepared(tmp_path, **settings):
    """A base with the roles that PPO expects from the finished stages, and PPO's own added by the stage."""
    base = make_base()
    context = make_context(base, tmp_path)
    for i, name in enumerate(("reference", "reward")):
        base.add_role(name, context.adapter, head=name == "reward")
        randomise(base, name, i)
    base.heads["reward"].bias.data.fill_(0.4)
    model = RewardModel(base=base, role="reward", renderer=context.renderer, score_mean=0.25, score_std=2.0)
    config = PPOConfig(rollouts=8, updates=2, epochs=1, max_new_tokens=6, **settings)
    ppo_stage.add_roles(context, config, model)
    return base, context, config, model


@pytest.mark.parametrize("standardise", [False, True])
def test_the_critic_starts_as_the_centred_reward_model(tmp_path, standardise):
    """P9, P15, W5: value of each state = the score that the reward model gives it there; the policy = the reference."""
    base, _, _, _ = prepared(tmp_path, standardise_scores=standardise)
    ids = torch.arange(5, 15)[None]
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        with base.role("value") as view:
            values = view.head(view.hidden(ids, mask))
        with base.role("reward") as view:
            scores = view.head(view.hidden(ids, mask)) - 0.25
        with base.role("policy") as view:
            policy = view.hidden(ids, mask)
        with base.role("reference") as view:
            reference = view.hidden(ids, mask)
        with base.role("base") as view:
            plain = view.hidden(ids, mask)
    assert_close(values, scores / (2.0 if standardise else 1.0), atol=1e-5, rtol=1e-5)
    assert torch.equal(policy, reference) and (policy - plain).abs().max() > 1e-2
    assert base.heads["value"].weight.data_ptr() != base.heads["reward"].weight.data_ptr()


def test_a_zero_critic_says_zero(tmp_path):
    """P9."""
    base, _, _, _ = prepared(tmp_path, value={"init": "reward", "head": "zero"})
    with base.role("value") as view, torch.no_grad():
        assert (view.head(torch.randn(3, 32)) == 0).all()


def test_heads_stay_where_they_are(tmp_path):
    """P6: the value head's storage never moves, and the reward head's bytes never change."""
    ppo = make_ppo(tmp_path, learning_rate=1e-2)
    ppo.base.add_role("reward", ppo.context.adapter, head=True)
    value, reward = ppo.base.heads["value"], ppo.base.heads["reward"]
    place, kept = value.weight.data_ptr(), reward.weight.clone()
    list(ppo.train())
    assert ppo.base.heads["value"] is value and value.weight.data_ptr() == place
    assert torch.equal(reward.weight, kept)


# -- optimisation ------------------------------------------------------------------------------------------------


def test_decay_does_not_move_what_has_no_gradient(tmp_path):
    """C7: during the critic's warm-up the policy stands still under weight decay; heads are never decayed."""
    ppo = make_ppo(tmp_path, critic_warmup=1, updates=1, weight_decay=0.5, learning_rate=1e-2)
    before = {n: p.clone() for n, p in ppo.policy_parameters.items()}
    list(ppo.train())
    assert all(torch.equal(p, before[n]) for n, p in ppo.policy_parameters.items())
    head = next(g for g in ppo.optimizer.param_groups if any(p is ppo.base.heads["value"].weight for p in g["params"]))
    assert head["weight_decay"] == 0.0 and len(head["params"]) == 2


class Recorder(AdaptiveKL):
    """Ziegler's controller, which writes down what it is told."""

    def __init__(self, coef: float, target: float, horizon: float, given: list) -> None:
        super().__init__(coef, target, horizon)
        self.given = given

    def update(self, kl: float, samples: int) -> None:
        self.given.append((kl, samples))
        super().update(kl, samples)


def test_the_controllers_new_coefficient_holds_from_the_next_rollout_on(tmp_path):
    """W13: sequence-summed KL of the rollout just used, number of all samples."""
    ppo = make_ppo(tmp_path, kl="adaptive", kl_coef=0.2, kl_target=0.01, kl_horizon=100.0, learning_rate=1e-2)
    given: list = []
    ppo.controller = Recorder(0.2, 0.01, 100.0, given)
    rows = list(ppo.train())
    assert given == [(row["objective/kl"], 8) for row in rows] and given[-1][0] > 0.01
    expected = 0.2
    for row in rows:
        assert row["objective/kl_coef"] == pytest.approx(expected)
        expected *= 1 + max(-0.2, min(0.2, row["objective/kl"] / 0.01 - 1)) * 8 / 100
    assert rows[-1]["objective/kl_coef"] != pytest.approx(0.2)


def test_entropy_bonus_raises_entropy(tmp_path):
    """O5: nothing else pays, so the distribution becomes flatter."""
    found = []
    for coef in (0.0, 0.3):
        ppo = make_ppo(
            tmp_path, reward=lambda s: torch.zeros(len(s.texts)), kl_coef=0.0, missing_eos_penalty=0.0,
            entropy_coef=coef, updates=6, learning_rate=1e-2, whiten_advantages=False,
        )  # fmt: skip
        with torch.no_grad():
            ppo.base.heads["value"].zero_()
        found.append(list(ppo.train())[-1]["objective/entropy"])
    assert found[1] > found[0] + 0.1


def test_a_perfect_critic_leaves_the_policy_alone(tmp_path):
    """Sanity 4: values equal to the returns, so advantages and the policy's gradient are 0."""
    ppo = make_ppo(tmp_path, engine=Injected(RAGGED), whiten_advantages=False, gamma=1.0, lam=1.0)
    rollout = rolled_out(ppo)
    rollout.values = torch.flip(torch.cumsum(torch.flip(rollout.rewards, [1]), 1), [1]) * rollout.mask
    ppo.compute_rewards(rollout)
    ppo.compute_advantages(rollout)
    assert rollout.advantages.abs().max() < 1e-6
    assert ppo.summary(rollout)["ppo/value/explained_variance"] == pytest.approx(1.0)


def test_full_fine_tuning_trains_copies_and_leaves_base_and_reference(tmp_path):
    """C6, W6, C10: the roles are models of their own; checkpointing reaches them too."""
    base = make_base()
    context = make_context(base, tmp_path, gradient_checkpointing=True)
    full = AdapterConfig(method="full")
    base.add_role("reference", full)
    base.add_role("policy", full, copy_of="reference")
    base.add_role("value", full, copy_of="reference", head=True)
    reference = [p.clone() for p in base.copies["reference"].parameters()]
    from stages.ppo.update import PPO
    from tests.support.ppo import first_word_reward

    config = PPOConfig(rollouts=8, updates=1, epochs=1, max_new_tokens=6, learning_rate=1e-3)
    ppo = PPO(context, config, PROMPTS, WeightedSum([("test", 1.0, first_word_reward)]))
    flagged = []
    for _ in ppo.train():
        flagged.append(any(getattr(m, "gradient_checkpointing", False) for m in base.copies["policy"].modules()))
    assert flagged == [True]
    assert not any(getattr(m, "gradient_checkpointing", False) for m in base.copies["policy"].modules())
    assert all(torch.equal(a, b) for a, b in zip(reference, base.copies["reference"].parameters(), strict=True))
    assert base.base_fingerprint() == base.fingerprint
    pairs = zip(reference, base.copies["policy"].parameters(), strict=True)
    assert sum(not torch.equal(a, b) for a, b in pairs) > 10
