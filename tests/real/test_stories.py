"""The whole pipeline on real pretrained bases: stories come to be kinder and to end, and stay stories."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from data.common.user_functions import load_function
from pipelines.execution.progress import Progress
from pipelines.run.pipeline import Pipeline
from reward.card.gate import failures
from tests.support.real_runs import (
    EXAMPLES,
    HERE,
    assert_base_as_it_was,
    base_nll,
    comparison,
    lines,
    metrics,
    need,
    results,
    run,
    some_of,
)

pytestmark = pytest.mark.real_data

# A story of 250 tokens has its score at the very end. A critic that has not learnt so yet praises every early end, and
# PPO tells two sentences and stops (docs/measurements/real_data.md): train the critic first, lambda = 1.
PATIENT = [
    "reward.epochs=4",
    "ppo.updates=13",
    "ppo.critic_warmup=3",
    "ppo.value_learning_rate=2.0e-3",
    "ppo.lam=1.0",
    "ppo.learning_rate=5.0e-4",
    "ppo.kl_coef=0.1",
    "ppo.missing_eos_penalty=0",
]
BASES = {  # stop tokens, longest story in the base's own tokens, and what else differs from the example
    "TinyStories-656K": ("[]", 160, []),
    # its </s> is an untrained embedding; between stories it was trained with <s>
    "stories260K": ("['<s>']", 256, ["rankings.prompts=200", *PATIENT]),
}


def settings(shared: Path, folder: Path, base: str, demonstrations: int = 350) -> list[str]:
    """Real paths and this base's lengths. The shortest stories are the demonstrations: they fit the limits whole."""
    stop, longest, further = BASES[base]
    rows = lines(need(shared, "data/ready/sft/tinystories_continue.train.jsonl.gz"))
    rows.sort(key=lambda row: len(json.loads(row)["completion"]))
    return [
        f"base={need(shared, 'models/' + base)}",
        f"stop={stop}",
        f"data.demonstrations={some_of(Path('stories.jsonl'), rows[:demonstrations], folder)}",
        f"data.prompts={need(shared, 'data/ready/prompts/tinystories_openings.train.jsonl.gz')}",
        f"sft.max_tokens={longest + 96}",
        f"reward.max_tokens={longest + 96}",
        f"rankings.max_new_tokens={longest}",
        f"ppo.max_new_tokens={longest}",
        "evaluation.greedy=false",
        *further,
    ]


SMALL = [
    "sft.epochs=1",
    "rankings.prompts=24",
    "rankings.held_out_prompts=12",
    "rankings.max_new_tokens=48",
    "reward.epochs=1",
    "reward.batch=8",
    "reward.calibration_samples=8",
    "ppo.updates=2",
    "ppo.critic_warmup=1",
    "ppo.rollouts=16",
    "ppo.micro_batch=16",
    "ppo.max_new_tokens=48",
    "evaluation.prompts=16",
    "evaluation.bootstrap=200",
]


@pytest.mark.parametrize("base", BASES)
def test_all_stages_run_on_a_real_pretrained_base(shared: Path, tmp_path: Path, base: str) -> None:
    pipeline = run("stories.yaml", [*settings(shared, tmp_path, base, 64), *SMALL], tmp_path)
    assert pipeline.recipe.stages == ("sft", "rankings", "reward", "ppo", "evaluate")
    stop = pipeline.loaded.renderer().stop_ids[0]
    assert (
        pipeline.loaded.base().tokenizer.convert_ids_to_tokens(stop)
        == {
            "TinyStories-656K": "<|end_story|>",
            "stories260K": "<s>",
        }[base]
    )
    assert metrics(pipeline, "rankings")["rankings"] == 24
    found = results(pipeline)
    assert (found["prompts"], found["judge"], found["against"]) == (16, "gold", "sft")
    assert list(found["systems"]) == ["base", "sft", "best_of_4", "ppo"]
    for system in found["systems"].values():
        assert 0 <= system["gold"]["mean"] <= 2 and system["distinct_2"] > 0.1
    # pretrained, and told so: its own stories are likely to it, at most a few nats a token
    assert 0 < base_nll(pipeline, "sft") < 5
    assert_base_as_it_was(pipeline)


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES)
def test_ppo_makes_stories_kinder_and_leaves_them_stories(shared: Path, tmp_path: Path, base: str) -> None:
    pipeline = run("stories.yaml", settings(shared, tmp_path, base), tmp_path)
    found, against = results(pipeline), comparison(pipeline, "ppo")
    nats = {system: base_nll(pipeline, system) for system in found["systems"]}
    for name, system in found["systems"].items():
        print(
            f"{base} {name}: gold {system['gold']['mean']:.3f}, tokens {system['length']['mean']:.0f}, "
            f"KL {system['kl']['mean']:.1f}, distinct-2 {system['distinct_2']:.3f}, cut {system['truncated']:.2f}, "
            f"perplexity under the base {math.exp(nats[name]):.1f}"
        )
    print(f"PPO against SFT: {against['win_rate']} {against['difference']}")
    assert against["difference"]["ci95"][0] > 0
    assert nats["ppo"] < nats["sft"] + 0.2  # not less of a story than SFT tells
    sft, ppo = found["systems"]["sft"], found["systems"]["ppo"]
    assert ppo["distinct_2"] > 0.8 * sft["distinct_2"]
    assert ppo["length"]["mean"] > 0.4 * sft["length"]["mean"]
    assert_base_as_it_was(pipeline)


@pytest.mark.slow
def test_base_and_data_alone_pass_the_gate(shared: Path, tmp_path: Path) -> None:
    """The minimal recipe: passes, batches, lengths and rates are those that trivet chooses."""
    rows = lines(need(shared, "data/ready/sft/tinystories_continue.train.jsonl.gz"))
    rows.sort(key=lambda row: len(json.loads(row)["completion"]))
    recipe = {
        "base": str(need(shared, "models/TinyStories-656K")),
        "data": {
            "demonstrations": str(some_of(Path("stories.jsonl"), rows[:350], tmp_path)),
            "prompts": str(need(shared, "data/ready/prompts/tinystories_openings.train.jsonl.gz")),
            "held_out": 0.15,
        },
        "rankings": {"annotator": f"{EXAMPLES / 'kindness.py'}:kindness"},
    }
    pipeline = Pipeline.from_recipe(recipe, HERE, run_dir=tmp_path / "run")
    pipeline.run(progress=Progress(active=False), until="reward")
    for stage in ("sft", "reward"):
        curves = metrics(pipeline, stage)["held_out_curves"]
        assert all(curve["learnt"] for curve in curves.values()), curves
    card = json.loads((pipeline.run_dir / "reward" / "report_card.json").read_text())
    assert failures(card, pipeline.recipe.reward.gate) == []
    assert card["accuracy"]["ci95"][0] > 0.8, card["accuracy"]


def test_kindness_counts_kindness_and_an_end() -> None:
    """The preference itself, on stories whose score is plain."""
    function = load_function("kindness.py:kindness", EXAMPLES)
    kind = " She saw a bird. She helped the bird. They were friends."
    plain = " She saw a bird. It was red. It flew away."
    cut, torso = " She saw a bird. She helped the bird. They w", " The end."
    stories = [kind, plain, cut, torso, kind, ""]
    finished = [True, True, False, True, False, True]
    assert function([""] * 6, stories, finished=finished) == [2, 1, 1, 0, 1, 0]
