"""Recipes: defaults, overrides, and every wrong input told by file, line and key."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from data.common.errors import UserError
from pipelines.loading import checks
from pipelines.loading.load import load_recipe
from pipelines.recipe.schema import Recipe, resolved_yaml

ROOT = Path(__file__).parents[3]
GOOD = """\
name: mine
base: gpt2
data:
  demonstrations: demos.jsonl
  rankings: [a.jsonl, b.jsonl]
ppo:
  kl_coef: 0.1
  learning_rate: 1e-5
"""
SCRATCH: dict[str, Any] = {"base": {"pretrain": {}}, "data": {"demonstrations": "demo-task", "rankings": "r.jsonl"}}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def failure(tmp_path: Path, text: str, *overrides: str) -> str:
    path = written(tmp_path, text)
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    return str(caught.value).replace(str(path), "FILE")


def test_defaults_and_given_values(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, GOOD))
    assert (recipe.ppo.kl_coef, recipe.ppo.learning_rate, recipe.ppo.clip) == (0.1, 1e-5, 0.2)
    assert recipe.data.rankings == ("a.jsonl", "b.jsonl") and recipe.data.demonstrations == ("demos.jsonl",)
    assert recipe.stages == ("sft", "reward", "ppo", "evaluate")
    assert recipe.base_dir == tmp_path and "base_dir" not in recipe.model_dump()
    with pytest.raises(ValidationError):
        recipe.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.name)
def test_examples_load_and_resolve_to_themselves(example: Path, tmp_path: Path) -> None:
    text = resolved_yaml(load_recipe(example))
    assert resolved_yaml(load_recipe(written(tmp_path, text))) == text


def test_resolved_numbers_stay_numbers_for_other_readers(tmp_path: Path) -> None:
    import yaml

    text = resolved_yaml(load_recipe(written(tmp_path, GOOD)))
    assert yaml.safe_load(text)["ppo"]["learning_rate"] == 1e-5


def test_reading_a_recipe_imports_no_heavy_library() -> None:
    code = (
        "import sys; from pipelines.loading.load import load_recipe; import pipelines.cli.main; "
        "load_recipe('examples/tiny.yaml'); sys.exit(bool({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "  kl_ceof: 1\n", "FILE:9: ppo.kl_ceof: no such setting. Did you mean 'kl_coef'"),
        (GOOD + "ptt: {}\n", "FILE:9: ptt: no such setting."),
        (GOOD + "  value: {hed: zero}\n", "FILE:9: ppo.value.hed: no such setting. Did you mean 'head'"),
        (GOOD + "base_dir: /tmp\n", "FILE:9: base_dir: no such setting"),
        (GOOD + "  kl_coef: 0.2\n", "FILE:9: ppo.kl_coef is given twice (first in line 7)"),
        (GOOD + "seed: many\n", "FILE:9: seed: must be a whole number, not 'many'"),
        (GOOD + "seed: '3'\n", "FILE:9: seed: must be a number, not the text '3': write it without quotes"),
        (GOOD + "seed: true\n", "FILE:9: seed: must be a number, not true"),
        (GOOD + "  whiten_rewards: 1\n", "FILE:9: ppo.whiten_rewards: must be true or false, not 1"),
        (GOOD + "  clip: -1\n", "FILE:9: ppo.clip: must be more than 0"),
        (GOOD + "  clip: .nan\n", "FILE:9: ppo.clip: must be a finite number"),
        (
            GOOD + "  kl: adaptiv\n",
            "ppo.kl: must be one of 'fixed', 'adaptive', not 'adaptiv'. Did you mean 'adaptive'",
        ),
        (GOOD + "sft: 3\n", "FILE:9: sft: must be a group of settings (key: value), not 3"),
        (GOOD + "  rollouts: 10\n  minibatches: 3\n", "FILE:6: ppo: rollouts 10 is not divisible by minibatches 3"),
        (GOOD + "  reward: [{weight: 2}]\n", "ppo.reward.0.source: is needed but not given"),
        (GOOD + "stages: [sft, pppo]\n", "FILE:9: stages: no stage 'pppo'. Did you mean 'ppo'"),
        (GOOD + "stages: [ppo, sft]\n", "FILE:9: stages: must be in the order in which they run: [sft, ppo]"),
        (GOOD + "stages: [sft, rankings, ppo]\n", "FILE:9: stages: 'rankings' needs the settings `rankings`"),
        (GOOD + "stages: [pretrain, sft]\n", "FILE:9: stages: 'pretrain' makes a base, but base is 'gpt2'"),
        (GOOD + "rankings: {annotator: a.py:f}\n", "FILE:9: rankings: the reward model would have two sources"),
        (GOOD + "evaluation:\n  systems:\n  - sft\n  - bets_of_4\n", "FILE:12: evaluation.systems.1: no system"),
        ("base: gpt2\n", "FILE: data: is needed but not given"),
        ("base: 5\ndata: {demonstrations: x}\n", "FILE:1: base: must be text or a group of settings"),
        (
            GOOD + "evaluation: {labels: [yes, no]}\n",
            "labels.0: must be text, not true; YAML reads yes, no, on and off as",
        ),
        (GOOD + "evaluation: {labels: [a, 2]}\n", "FILE:9: evaluation.labels.1: must be text, not 2; put it in quotes"),
        (GOOD + "  reward: []\n", "FILE:9: ppo.reward: names no term of the reward"),
        (GOOD + "  reward: [{source: model, weight: 0}]\n", "FILE:9: ppo.reward.0.weight: has no effect: it is 0"),
        (GOOD + "  reward: [model, model]\n", "FILE:9: ppo.reward.1: 'model' is listed twice; add the weights up"),
        (
            GOOD + "evaluation: {best_of_by: {short: [{source: length, max_length: 3, weight: 0.0}]}}\n",
            "FILE:9: evaluation.best_of_by.short.0.weight: has no effect",
        ),
        (GOOD + "evaluation: {systems: [sft, base, sft]}\n", "FILE:9: evaluation.systems.2: 'sft' is listed twice"),
        (GOOD + "evaluation: {systems: [best_of_4, best-of-4]}\n", "evaluation.systems.1: 'best_of_4' is listed twice"),
        (GOOD + "evaluation: {metrics: [rouge, rouge]}\n", "FILE:9: evaluation.metrics.1: 'rouge' is listed twice"),
        (GOOD + "evaluation: {lm_eval: {tasks: [a, a]}}\n", "evaluation.lm_eval.tasks.1: 'a' is listed twice"),
        (
            GOOD + "evaluation: {metrics: ['a.py:ln', 'b.py:ln']}\n",
            "FILE:9: evaluation.metrics.1: b.py:ln and a.py:ln both give a number called 'ln', and one would take",
        ),
        (GOOD + "evaluation: {metrics: [rouge, 'm.py:rouge1']}\n", "m.py:rouge1 and rouge both give a number called"),
        (
            GOOD + "evaluation: {metrics: ['p.q:nats_under_base', base_perplexity]}\n",
            "metrics.1: base_perplexity and p.q",
        ),
        (
            GOOD + "evaluation: {judges: [{name: gold, url: 'http://localhost/v1', model: m}]}\n",
            "FILE:9: evaluation.judges.0.name: 'gold' is what results call a judge of their own; choose another",
        ),
        (GOOD + "evaluation: {prompted: {a-b: {}, a_b: {}}}\n", "evaluation.prompted: 'a-b' and 'a_b' are one name"),
        (
            GOOD + "  reward: [{source: model, clip: 1.0}, {source: 'r.py:f', name: model/transformed}]\n",
            "FILE:9: ppo.reward.1: 'model/transformed' is what metrics call another term after",
        ),
        ("base: gpt2\ndata: {}\n", "FILE:2: data: calls for no stage"),
        ("base: gpt2\ndata: {demonstrations: x}\nstages: [reward]\n", "FILE:2: data: the reward stage needs"),
        ("base: gpt2\n\tdata: x\n", "FILE:2: not readable as YAML"),
        ("base: [gpt2\n", "not readable as YAML"),
        ("- base\n", "FILE: a recipe is a mapping"),
        ("", "FILE: is empty"),
        ("base: !!python/object:os.system x\n", "not readable as YAML"),
        ("base: &a {pretrain: *a}\n", "FILE:1: an alias that contains itself"),
        ("base: gpt2\nname: a/b\ndata: {demonstrations: x}\n", "FILE:2: name: 'a/b' names the run folder"),
    ],
)
def test_wrong_recipes_name_file_line_key_and_mend(tmp_path: Path, text: str, message: str) -> None:
    assert message in failure(tmp_path, text)


def test_several_mistakes_come_together(tmp_path: Path) -> None:
    told = failure(tmp_path, GOOD + "  clip: x\nseed: y\n")
    assert "2 things to fix" in told and "FILE:9: ppo.clip" in told and "FILE:10: seed" in told


def test_a_mistake_inside_the_base_is_told_once(tmp_path: Path) -> None:
    told = failure(tmp_path, "base:\n  pretrain:\n    steps: none\ndata: {documents: x}\n")
    assert told == "FILE:3: base.pretrain.steps: must be a whole number, not 'none'"


def test_overrides(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD + "  reward: [{source: model}, {source: 'r.py:f'}]\n")
    recipe = load_recipe(
        path, ["ppo.kl_coef=2", "ppo.reward.1.weight=0.5", "evaluation.gold=g.py:f", "ppo.value_clip=null"]
    )
    assert (recipe.ppo.kl_coef, recipe.ppo.reward[1].weight, recipe.ppo.value_clip) == (2.0, 0.5, None)
    assert recipe.evaluation.gold == "g.py:f"
    scratch = load_recipe(SCRATCH, ["base.pretrain.steps=7", "base.pretrain.model={width: 32, context: 80}"])
    assert not isinstance(scratch.base, str)
    assert (scratch.base.pretrain.steps, scratch.base.pretrain.model.width) == (7, 32)


def test_a_group_is_set_and_then_a_part_of_it():
    made = load_recipe(SCRATCH, ["sft={epochs: 2}", "sft.batch=4", "ppo.updates=3"])
    assert (made.sft.epochs, made.sft.batch, made.ppo.updates) == (2, 4, 3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ppo.kl_ceof=1", "--set ppo.kl_ceof=1: ppo.kl_ceof: no such setting. Did you mean 'kl_coef'"),
        ("ppo.kl_coef=high", "--set ppo.kl_coef=high: ppo.kl_coef: must be a number, not 'high'"),
        ("runtime.threads=100000", "runtime.threads: must be at most 1024, not 100000"),
        ("ppo.kl_coef", "must have the form key.subkey=value"),
        ("sft.batch=", "--set sft.batch=: the value is empty; write null for none"),
        ("sft.batch= ", "the value is empty; write null for none"),
        ("base.pretrain.steps=3", "base is 'gpt2', not a group"),
        ("data.rankings.7=x", "data.rankings is a list of 2"),
        ("ppo.kl_coef=[1", "not readable as YAML"),
        (
            "seed=99999999999999999999999",
            "the number 99999999999999999999... is too large (at most 9223372036854775807)",
        ),
    ],
)
def test_wrong_overrides_name_themselves(tmp_path: Path, override: str, message: str) -> None:
    assert message in failure(tmp_path, GOOD, override)


def test_limits_follow_the_context_of_a_base_from_scratch() -> None:
    recipe = load_recipe(SCRATCH, ["base.pretrain.model.context=100", "ppo.max_new_tokens=40"])
    assert (recipe.ppo.max_prompt_tokens, recipe.sft.max_tokens, recipe.reward.max_tokens) == (60, 100, 100)
    with pytest.raises(UserError, match=r"ppo\.max_prompt_tokens: prompt \(90\) and response \(40\).*context of 100"):
        load_recipe(SCRATCH, ["base.pretrain.model.context=100", "ppo.max_new_tokens=40", "ppo.max_prompt_tokens=90"])
    with pytest.raises(UserError, match=r"sft\.max_tokens: 500 tokens do not fit"):
        load_recipe(SCRATCH, ["sft.max_tokens=500"])


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_tokenizers_that_take_no_further_tokens_are_refused_before_they_are_made(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: object())
    changes = [f"base.pretrain.tokenizer={kind}", "continued={added_vocabulary: 5}"]
    recipe = SCRATCH | {"data": SCRATCH["data"] | {"documents": "d.txt"}}
    with pytest.raises(UserError, match=rf"added_vocabulary: base\.pretrain\.tokenizer '{kind}' takes no further"):
        load_recipe(recipe, changes)
    load_recipe(recipe, [changes[0]])


def test_a_unigram_tokenizer_asks_for_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pretrain\.tokenizer: 'unigram' needs .* pip install 'trivet\[unigram\]'"):
        load_recipe(SCRATCH, ["base.pretrain.tokenizer=unigram"])
    load_recipe(SCRATCH, ["base.pretrain.tokenizer=wordpiece"])


def test_short_forms_and_dependent_defaults() -> None:
    recipe = load_recipe(SCRATCH, ["ppo.reward=[model, r.py:f]", "ppo.value={init: sft}"])
    assert [p.source for p in recipe.ppo.reward] == ["model", "r.py:f"]
    assert recipe.ppo.value.head == "zero"


@pytest.mark.parametrize(
    ("data", "extra", "stages"),
    [
        ({"documents": "d.txt"}, {"base": {"pretrain": {}}}, ("pretrain",)),
        ({"demonstrations": "d"}, {}, ("sft",)),
        ({"rankings": "r"}, {}, ("reward",)),
        (
            {"demonstrations": "d"},
            {"rankings": {"annotator": "a.py:f"}},
            ("sft", "rankings", "reward", "ppo", "evaluate"),
        ),
        ({"prompts": "p"}, {"ppo": {"reward": ["r.py:f"], "value": {"init": "sft"}}}, ("ppo", "evaluate")),
    ],
)
def test_default_stages_are_those_called_for(data: Any, extra: Any, stages: tuple[str, ...]) -> None:
    assert load_recipe({"base": "gpt2", "data": data} | extra).stages == stages


def test_a_reward_from_functions_alone_needs_another_value_role() -> None:
    with pytest.raises(UserError, match=r"ppo\.value: there is no reward model .* 'sft'"):
        load_recipe({"base": "gpt2", "data": {"prompts": "p"}, "ppo": {"reward": ["r.py:f"]}})


def test_missing_files_are_named(tmp_path: Path) -> None:
    written(tmp_path, GOOD)
    with pytest.raises(UserError, match=r"recipes\.yaml: no such recipe\. There is: recipe\.yaml"):
        load_recipe(tmp_path / "recipes.yaml")
    with pytest.raises(UserError, match="is a folder"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"base: \xe9")
    with pytest.raises(UserError, match="not UTF-8"):
        load_recipe(tmp_path / "latin.yaml")


def test_a_recipe_from_a_dict_takes_settings_objects() -> None:
    from stages.settings import PPOConfig

    recipe = load_recipe({"base": "gpt2", "data": {"rankings": ("r",), "prompts": ("p",)}, "ppo": PPOConfig(clip=0.3)})
    assert isinstance(recipe, Recipe) and recipe.ppo.clip == 0.3 and recipe.base_dir == Path.cwd()
