"""Which systems of an evaluation the servers of ``runtime.rollouts`` sample, and what is said of the others."""

from __future__ import annotations

from dataclasses import replace

from data.splits import Corpus
from evaluation.held_out import Evaluator, System
from evaluation.settings import EvaluationConfig
from models.sampling.settings import RolloutServers
from stages.remote_rollouts import RemoteRollouts
from tests.conftest import make_base, randomise
from tests.support.ppo import PROMPTS, make_context
from tests.support.vllm_double import VLLMDouble, serving_vllm


def test_a_model_of_its_own_is_sampled_by_trivet_and_that_is_said(tmp_path):
    """The server has the run's base: it gets that and adapters on it; greedy and sampled rows are compared alike."""
    double, said = VLLMDouble(make_base()), []
    with serving_vllm(double) as url:
        servers = RolloutServers(engine="vllm", servers=(url,), backoff=0.0, retries=0)
        context = replace(make_context(make_base(), tmp_path, Corpus(), rollouts=servers), say=said.append)
        context.base.add_role("sft", context.adapter)
        randomise(context.base, "sft", 1)
        evaluator = Evaluator(
            base=context.base,
            renderer=context.renderer,
            config=EvaluationConfig(temperature=0.5),
            prompts=PROMPTS[:3],
            max_new_tokens=5,
            seed=0,
            processes=context.processes,
            servers=RemoteRollouts(servers, context),
        )
        of_run = System(name="sft", base=context.base, role="sft", renderer=context.renderer)
        greedy = evaluator.run(of_run, "greedy")
        evaluator.run(of_run, "sampled")
        assert len(double.asked) == 6 and not said
        assert {body["temperature"] for body in double.asked} == {0.0, 0.5}
        other = make_base(seed=1)
        own = evaluator.run(replace(of_run, name="other", base=other, role="base"), "greedy")
        assert len(double.asked) == 6 and len(own.responses) == 3
        why = "is a model of its own, which the servers of runtime.rollouts do not have: trivet samples it"
        assert said == [f"evaluation: other {why}"]
        alone = replace(evaluator, servers=None).run(of_run, "greedy")
    assert greedy.token_ids == alone.token_ids and greedy.generation != alone.generation
