"""A scorer behind an address, from the command line's side: the example that PPO optimises, and ``trivet score``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.common.errors import UserError
from data.common.http_client import RemoteError
from data.common.user_functions import fingerprint_of
from data.demo.task import gold
from pipelines.cli import main as cli
from pipelines.cli.serve_reward import scorer_of
from pipelines.run.pipeline import Pipeline
from pipelines.run.score import load_scorer
from reward.terms.server import serving
from tests.support.servers import answering

ROOT = Path(__file__).parents[3]
QUICK = ["base.pretrain.steps=4", "ppo.updates=1", "ppo.rollouts=8", "ppo.max_new_tokens=8"]


def test_the_example_is_paid_by_the_scorer_that_it_tells_to_serve(tmp_path: Path) -> None:
    text = (ROOT / "examples" / "remote_reward.yaml").read_text()
    assert "trivet serve-reward data.demo.task:gold" in text
    asked: list[dict] = []
    scorer = scorer_of("data.demo.task:gold")

    def told(rows):
        asked.extend(rows)
        return scorer(rows)

    with serving(told) as address:
        (tmp_path / "recipe.yaml").write_text(text.replace("http://127.0.0.1:8791/", address))
        pipeline = Pipeline.from_recipe(tmp_path / "recipe.yaml", QUICK, tmp_path / "run")
        assert pipeline.recipe.stages == ("pretrain", "sft", "ppo", "evaluate")
        pipeline.run(until="ppo")
    line = json.loads((tmp_path / "run/ppo/metrics.jsonl").read_text().splitlines()[0])
    paid = gold([r["prompt"] for r in asked], [r["completion"] for r in asked], [r["finished"] for r in asked])
    assert len(asked) == 8 and line["reward/gold"] == pytest.approx(sum(paid) / 8, abs=1e-5)


def test_answers_in_a_file_are_scored_by_an_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "w1 w2", "response": "w3"}, {"prompt": "w1", "response": "w4 w5"}]
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def scorer(asked):
        return [float(len(r["completion"])) + 10 * len(r["messages"][-1]["content"]) for r in asked]

    with serving(scorer) as address:
        assert cli.main(["score", address, str(file)]) == 0
    assert [json.loads(line)["reward"] for line in capsys.readouterr().out.splitlines()] == [52.0, 25.0]
    with answering(forever=(404, b"")) as (url, _), pytest.raises(RemoteError, match="404"):
        load_scorer(url)([[]], ["w1"], [True])


@pytest.mark.parametrize("number", ["65536", "-1"])
def test_a_port_that_is_none_is_the_users_mistake(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve-reward", "data.demo.task:gold", "--port", number]) == 2
    assert "--port" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["localhost:8791/score", "127.0.0.1:8791", "http:/127.0.0.1:8791", "http://a.b/c"])
def test_an_address_where_a_function_belongs_is_told_apart(address: str) -> None:
    for load in (fingerprint_of, scorer_of):
        with pytest.raises(UserError, match=r"an address is no function.*http://host:port/"):
            load(address)
