"""A whole run whose rankings and rollouts are sampled by servers, and what plan and start say of them."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from itertools import pairwise
from typing import Any

import pytest
import torch

from data.common.errors import StageError, UserError
from models.backbone.settings import METHODS
from models.roles.shared_base import SharedBase
from pipelines.cli.rollout_server import command_line, serve
from pipelines.loading.load import load_recipe
from pipelines.run.endpoints import unanswered
from pipelines.run.pipeline import Pipeline
from tests.conftest import tiny_lm, word_tokenizer
from tests.support.recipes import RECIPE
from tests.support.vllm_double import VLLMDouble, serving_vllm


def recipe(*urls: str, **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = deepcopy(RECIPE)
    made["runtime"]["rollouts"] = {"engine": "vllm", "servers": list(urls), "retries": 0, "backoff": 0.0}
    for path, value in changes.items():
        group, key = path.split("__")
        made[group][key] = value
    return made


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder with base and SFT, and a server of that base."""
    folder = tmp_path_factory.mktemp("served") / "run"
    Pipeline.from_recipe(RECIPE, run_dir=folder).run(only=["pretrain", "sft"])
    double = VLLMDouble(SharedBase.load(folder / "pretrain" / "model", device="cpu"), room=128)
    with serving_vllm(double) as url:
        yield folder, double, url


def test_rankings_and_rollouts_come_from_the_servers(trained):
    folder, double, url = trained
    Pipeline.from_recipe(recipe(url), run_dir=folder).run(only=["rankings", "reward", "ppo"])
    assert len(double.asked) == 24 * 3 + 2 * 8  # prompts times answers, updates times rollouts
    assert len(set(double.loaded)) == 2 and not double.roles  # the SFT model, which is the first policy, and the second
    rows = [json.loads(line) for line in (folder / "ppo" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= row["rollout/server_gap"] < 1e-4 for row in rows)
    assert not list(folder.rglob("served_adapters"))
    # where servers are and how they are asked is no part of a result
    again = recipe("http://elsewhere:1")
    done = {s.name: s.status for s in Pipeline.from_recipe(again, run_dir=folder).plan()}
    assert {status for name, status in done.items() if name != "evaluate"} == {"cached"}
    own = {s.name: s.status for s in Pipeline.from_recipe(RECIPE, run_dir=folder).plan()}
    assert (own["sft"], own["rankings"], own["ppo"]) == ("cached", "stale", "stale")


def test_an_evaluation_s_responses_come_from_the_servers(trained, tmp_path):
    """Base and SFT of 6 held-out prompts, sampled and greedy, each as often as it is asked; then from disk."""
    folder, double, url = trained
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    settings = recipe(url, evaluation__greedy=True)
    settings["evaluation"]["best_of_by"] = {"short": [{"source": "length", "max_length": 3}]}
    settings["evaluation"]["systems"] = ["base", "sft", "best_of_3:short"]
    before, names = len(double.asked), len(double.loaded)
    Pipeline.from_recipe(settings, run_dir=run).run(only=["evaluate"])
    asked = double.asked[before:]
    # base and sft: 6 sampled, 6 greedy; best of 3: the first try is sft's own, two more
    assert len(asked) == 6 * (2 + 2 + 2)
    assert sum(body["model"] == "base" for body in asked) == 12
    assert sum(body["temperature"] == 0 for body in asked) == 12
    assert len(set(double.loaded[names:])) == 1 and not double.roles and not list(run.rglob("served_adapters"))
    results = json.loads((run / "evaluation" / "results.json").read_text())
    assert list(results["systems"]) == ["base", "sft", "best_of_3:short"]
    Pipeline.from_recipe(settings | {"evaluation": settings["evaluation"] | {"bootstrap": 60}}, run_dir=run).run(
        only=["evaluate"]
    )
    assert len(double.asked) == before + len(asked)
    status = {s.name: s.status for s in Pipeline.from_recipe(RECIPE, run_dir=run).plan()}
    assert status["evaluate"] == "stale"


def test_a_server_that_dies_in_an_evaluation_costs_nothing_but_time(trained, tmp_path):
    """One with the wrong weights ends it by name; the responses of systems that were finished are not sampled again."""
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)

    def evaluate(url: str) -> None:
        settings = recipe(url, evaluation__systems=["base", "sft"], evaluation__greedy=False)
        Pipeline.from_recipe(settings, run_dir=folder).run(only=["evaluate"])

    base = folder / "pretrain" / "model"
    dying = VLLMDouble(SharedBase.load(base, device="cpu"), room=128, dies_after=9)
    with serving_vllm(dying) as url, pytest.raises(StageError, match="no rollout server is left"):
        evaluate(url)
    assert [body["model"] == "base" for body in dying.asked] == [True] * 6 + [False] * 3
    wrong = SharedBase.load(base, device="cpu")
    with torch.no_grad():
        for name, p in wrong.lm.named_parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
    with (
        serving_vllm(VLLMDouble(wrong, room=128)) as url,
        pytest.raises(StageError, match="does not sample from the p"),
    ):
        evaluate(url)
    again = VLLMDouble(SharedBase.load(base, device="cpu"), room=128)
    with serving_vllm(again) as url:
        evaluate(url)
    assert len(again.asked) == 6 and "base" not in {body["model"] for body in again.asked}


def test_servers_that_do_not_answer_are_a_warning_at_the_start(trained):
    url = trained[2]
    (text,) = unanswered(load_recipe(recipe(url, "http://127.0.0.1:9")), ["rankings", "ppo"])
    assert text == "runtime.rollouts: nothing answers at http://127.0.0.1:9; the ppo stage will ask there"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *(
            ({"adapter__method": method, "adapter__rank": 16, "adapter__alpha": 32}, f"given adapters, .*'{method}'")
            for method, tuning in METHODS.items()
            if not tuning.plain
        ),
        ({"ppo__old_logprobs": "sampler"}, "ppo.old_logprobs: servers sample by other kernels"),
        ({"ppo__sampling_batch": 4}, "ppo.sampling_batch: has no effect"),
        ({"runtime__rollouts": {"engine": "vllm", "servers": ["here:8000"]}}, "'here:8000' is no address"),
        ({"runtime__rollouts": {"engine": "vllm", "servers": ["http://a:1", "http://a:1"]}}, "names a server twice"),
        ({"runtime__rollouts": {}, "ppo__importance_cap": 2.0}, "ppo.importance_cap: has no effect"),
    ],
)
def test_settings_that_servers_cannot_serve_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        load_recipe(recipe("http://127.0.0.1:9", **change))


@pytest.fixture
def on_a_folder(tmp_path):
    """A recipe on a folder's base."""
    tiny_lm().save_pretrained(tmp_path / "base")
    word_tokenizer().save_pretrained(tmp_path / "base")
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"prompt": "w1", "completion": "w2"}) + "\n")
    return {
        "base": str(tmp_path / "base"),
        "data": {"demonstrations": str(data), "prompts": str(data)},
        "ppo": {
            "max_new_tokens": 16,
            "max_prompt_tokens": 24,
            "reward": [{"source": "length", "max_length": 9}],
            "value": {"init": "sft"},
        },
        "adapter": {"rank": 9},
        "runtime": {"device": "cpu"},
    }


def test_the_server_s_command_has_what_the_recipe_asks_of_it(on_a_folder):
    line = command_line(load_recipe(on_a_folder), "py", "127.0.0.1", 8001, ["--tensor-parallel-size", "2"])
    flags = dict(pairwise(line))
    assert line[:3] == ["py", "-m", "vllm.entrypoints.openai.api_server"]
    assert (flags["--model"], flags["--dtype"], flags["--max-model-len"]) == (on_a_folder["base"], "float32", "40")
    assert flags["--max-lora-rank"] == "16" and "--enable-lora" in line  # vLLM takes powers of two
    assert (flags["--logprobs-mode"], flags["--generation-config"]) == ("processed_logprobs", "vllm")
    assert line[-2:] == ["--tensor-parallel-size", "2"]


def test_an_interpreter_without_vllm_is_named(on_a_folder):
    import sys

    with pytest.raises(UserError, match=r"has no vLLM.*--python vllm-env/bin/python"):
        serve(load_recipe(on_a_folder), sys.executable, "127.0.0.1", 8001, [], False)
    with pytest.raises(UserError, match="No such file"):
        serve(load_recipe(on_a_folder), "/no/python", "127.0.0.1", 8001, [], False)


def test_a_base_that_the_run_makes_cannot_be_served_before_it_is_made():
    with pytest.raises(UserError, match="a server needs its weights"):
        command_line(load_recipe(RECIPE), "py", "127.0.0.1", 8001)
