"""The steps of docs/architecture.md, "Adding things", taken: one made-up thing of each kind, in one real tiny run."""

from __future__ import annotations

import ast
import json
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import Field
from torch import Tensor

from data.common.config import Config
from data.common.errors import UserError
from data.formats import FORMATS, Format, Row
from data.records import Message
from evaluation.judge_table import JUDGES, Judge
from evaluation.metric_table import METRICS, Entry
from models.hub.registry import BASE_MODELS, BaseModelSpec
from pipelines.cli.main import main
from pipelines.loading.load import load_recipe
from pipelines.run.pipeline import Pipeline
from pipelines.stages.estimates import Work
from pipelines.stages.table import STAGES, Stage
from reward.losses import plackett_luce_loss
from reward.tables import LOSSES, POOLINGS, RULES, Loss, Pooling, Rule
from stages.stage import StageContext, StageResult
from tests.support.recipes import RECIPE

ROOT = Path(__file__).parents[1]


# -- the made-up things ----------------------------------------------------------------------------------------------


def hinge(scores: Tensor, ranks: Tensor, mask: Tensor) -> Tensor:
    """(B,) mean over pairs of max(0, 1 - difference)."""
    better = (ranks[:, :, None] < ranks[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    lacking = (1 - (scores[:, :, None] - scores[:, None, :])).clamp(min=0)
    return (lacking * better).sum((1, 2)) / better.sum((1, 2)).clamp(min=1)


def highest(states: Tensor, head: Any) -> Tensor:
    return head(states).max()


class Census:
    """A metric: the share of answers of an even number of characters."""

    def compute(self, predictions: list[str], **_: Any) -> dict[str, Any]:
        return {"scores": {"even": [float(len(p) % 2 == 0) for p in predictions]}}


class Alphabet:
    """A judge of pairs: the response that comes first in the alphabet is better."""

    def __init__(self, seen: Seen) -> None:
        self.seen, self.rows = seen, 0

    def outcomes(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
        self.rows += len(prompts)
        self.seen.compared += list(zip(first, second, strict=True))
        return [0.5 if a == b else float(a < b) for a, b in zip(first, second, strict=True)]

    def report(self) -> tuple[dict[str, Any], list[str]]:
        rows, self.rows = self.rows, 0
        return {"rows": rows}, ["The alphabet was asked."]


class PolishConfig(Config):
    """Settings of the made-up stage."""

    strength: int = Field(1, ge=0, description="how much it polishes")


class Seen:
    """What the made-up things were given while the run went."""

    def __init__(self) -> None:
        self.losses: list[tuple[Tensor, Tensor]] = []  # the loss's values and Plackett-Luce's of the same scores
        self.pooled: list[float] = []
        self.rewards: list[float] = []
        self.polished: list[int] = []
        self.compared: list[tuple[str, str]] = []


def polish(context: StageContext, loaded: Any, seen: Seen) -> StageResult:
    strength = loaded.recipe.polish.strength
    seen.polished.append(strength)
    (context.out / "polish.txt").write_text("shine" * strength)
    for step in (1, 2, 3):
        context.log.write(step, {"shine": step * strength})
        context.bar.advance(step, {})
    return StageResult(metrics={"strength": strength})


def register(patch: pytest.MonkeyPatch, seen: Seen, base: Path) -> None:
    def loss(scores: Tensor, ranks: Tensor, mask: Tensor) -> Tensor:
        found = hinge(scores, ranks, mask)
        if found.requires_grad:  # not the held-out loss
            seen.losses.append((found.detach(), plackett_luce_loss(scores, ranks, mask).detach()))
        return found

    def pool(states: Tensor, head: Any) -> Tensor:
        found = highest(states, head)
        seen.pooled.append(float(found.detach()))
        return found

    def rule(part: Any) -> Any:
        def score(samples: Any) -> Tensor:
            found = torch.tensor([float(len(t)) for t in samples.texts])
            seen.rewards.extend(found.tolist())
            return found

        return score

    def read(row: Any) -> list[Row]:
        return [Row(messages=(Message(role="user", content=row["asked"]),), answers=(row["told"],))]

    patch.setitem(LOSSES, "hinge", Loss(function=loss))
    patch.setitem(POOLINGS, "highest", Pooling(function=pool))
    patch.setitem(RULES, "size", Rule(make=rule))
    patch.setitem(METRICS, "census", Entry(Census, references=False, outcomes=True))
    patch.setitem(JUDGES, "alphabet", Judge(make=lambda config, folder, say: Alphabet(seen)))
    told = Format(columns="asked, told", fits=lambda row: "asked" in row and "told" in row, read=read)
    patch.setitem(FORMATS, "asked and told", told)
    patch.setitem(BASE_MODELS, "made-up", BaseModelSpec(name="made-up", source=str(base)))
    module = types.ModuleType("made_up_polish")
    module.VERSION = 7  # type: ignore[attr-defined]
    patch.setitem(sys.modules, "made_up_polish", module)
    entry = Stage(
        title="Polishing",
        folder="polished",
        group="polish",
        config=PolishConfig,
        code="made_up_polish",
        run=lambda context, loaded: polish(context, loaded, seen),
        wanted=lambda recipe, before: "sft" in before,
        needs=lambda recipe: ("sft",),
        depends_on=lambda recipe, left_out: {"strength": recipe.polish.strength},  # type: ignore[attr-defined]
        data=("prompts",),
        steps=lambda recipe, corpus: 3,
        estimate=lambda estimator: Work(tokens=123),
        curves=(("shine", "Shine", "Rises."),),
        command="Polish what SFT made.",
    )
    before = dict(STAGES)
    STAGES.clear()  # an entry stands where its stage runs: here behind SFT
    for name, stage in before.items():
        STAGES[name] = stage
        if name == "sft":
            STAGES["polish"] = entry


# -- the run ---------------------------------------------------------------------------------------------------------


class Done:
    def __init__(self, run: Path, recipe: Path, seen: Seen, codes: dict[str, int], base: Path) -> None:
        self.run, self.recipe, self.seen, self.codes, self.base = run, recipe, seen, codes, base

    def manifest(self, folder: str) -> dict[str, Any]:
        return json.loads((self.run / folder / "manifest.json").read_text())

    def metrics(self, folder: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run / folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    folder = tmp_path_factory.mktemp("extended")
    base_run = Pipeline.from_recipe(RECIPE, run_dir=folder / "base")
    base_run.run(only=["pretrain"])
    rows = base_run.corpus.demonstrations.train
    file = folder / "mine.jsonl"
    told = [{"asked": d.prompt.text, "told": d.answer} for d in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in told))
    recipe: dict[str, Any] = json.loads(json.dumps(RECIPE))
    recipe["base"] = "made-up"
    recipe["data"] = {"demonstrations": str(file), "prompts": "demo-task?rows=80", "held_out": 0.2}
    recipe["reward"] |= {"loss": "hinge", "pooling": "highest", "gate": {"enabled": False}}
    recipe["ppo"] |= {"reward": [{"source": "model"}, {"source": "size", "weight": 0.01}]}
    recipe["evaluation"] |= {"metrics": ["census"], "judges": [{"name": "abc", "kind": "alphabet"}]}
    recipe["polish"] = {"strength": 2}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    seen, run = Seen(), folder / "run"
    before = dict(STAGES)
    with pytest.MonkeyPatch.context() as patch:
        register(patch, seen, base_run.run_dir / "pretrain" / "model")
        codes = {name: main([name, str(path), "--run-dir", str(run)]) for name in ("plan", "run", "polish")}
        codes |= {"verify": main(["verify", str(run)]), "ls": main(["ls", str(run)])}
        try:
            yield Done(run, path, seen, codes, base_run.run_dir)
        finally:  # in the order of before
            STAGES.clear()
            STAGES.update(before)


def test_every_command_takes_them(done: Done) -> None:
    assert set(done.codes.values()) == {0}, done.codes


def test_a_stage_runs_in_its_place_with_settings_report_and_estimate(done: Done) -> None:
    stages = load_recipe(done.recipe).stages
    assert stages[:3] == ("sft", "polish", "rankings")
    assert (done.run / "polished/polish.txt").read_text() == "shineshine"
    assert done.seen.polished == [2]  # its own command found it finished
    made = done.manifest("polished")
    assert made["described"]["version"] == 7 and made["described"]["settings"] == {"strength": 2}
    page = (done.run / "report.html").read_text()
    assert "Polishing" in page and "Shine" in page
    [plan] = [p for p in Pipeline.from_recipe(done.recipe, run_dir=done.run).plan() if p.name == "polish"]
    assert plan.status == "cached" and plan.details["takes"].tokens == 123


def test_a_stages_settings_are_checked(done: Done) -> None:
    with pytest.raises(UserError, match=r"polish\.strenght: no such setting.*'strength'"):
        load_recipe(done.recipe, ["polish.strenght=3"])
    with pytest.raises(UserError, match=r"polish\.strength: must be at least 0"):
        load_recipe(done.recipe, ["polish.strength=-1"])


def test_training_used_the_loss_and_not_plackett_luce(done: Done) -> None:
    rows = [r for r in done.metrics("reward") if "loss" in r]
    ours = [float(ours.double().mean()) for ours, _ in done.seen.losses]
    others = [float(other.double().mean()) for _, other in done.seen.losses]
    assert rows and rows[0]["loss"] == pytest.approx(ours[0], rel=1e-4)
    assert ours[0] != pytest.approx(others[0], rel=1e-2)


def test_the_pooling_scored_and_is_stored(done: Done) -> None:
    from pipelines.run.open_run import open_run

    assert done.seen.pooled
    assert open_run(done.run).loaded.load_reward(done.run / "reward").pooling == "highest"


def test_the_rule_paid(done: Done) -> None:
    assert len(done.seen.rewards) >= 16 and max(done.seen.rewards) > 0


def test_the_metric_measured(done: Done) -> None:
    found = json.loads((done.run / "evaluation/results.json").read_text())["systems"]["sft"]["metrics"]
    answers = [json.loads(line) for line in (done.run / "evaluation/samples.jsonl").read_text().splitlines()]
    said = [a["systems"]["sft"]["response"] for a in answers if a["decoding"] == "sampled"]
    assert found["even"]["mean"] == pytest.approx(sum(len(s) % 2 == 0 for s in said) / len(said))


def test_the_judge_compared_systems_and_adversaries(done: Done) -> None:
    results = json.loads((done.run / "evaluation/results.json").read_text())
    rows = [json.loads(line) for line in (done.run / "evaluation/samples.jsonl").read_text().splitlines()]
    pairs = [
        (row["systems"]["ppo"]["response"], row["systems"]["sft"]["response"])
        for row in rows
        if row["decoding"] == "sampled"
    ]
    [found] = [c for c in results["comparisons"] if c["by"] == "abc" and c["a"] == "ppo"]
    assert (found["wins"], found["ties"], found["losses"]) == (
        sum(a < b for a, b in pairs),
        sum(a == b for a, b in pairs),
        sum(a > b for a, b in pairs),
    )
    about = results["judges"]["abc"]
    judged = [c for c in results["comparisons"] if c["by"] == "abc"]
    assert about["rows"] == sum(c["n"] for c in judged) and set(pairs) <= set(done.seen.compared)
    # before the alphabet an empty response comes first, so this judge is one not to rely on
    assert about["adversaries"]["empty_answer"]["win_rate"] > 0.5
    assert results["warnings"].count("The alphabet was asked.") == 1


def test_the_format_was_read_and_the_base_loaded(done: Done) -> None:
    corpus = Pipeline.from_recipe(done.recipe, run_dir=done.run).corpus
    rows = [json.loads(line) for line in (done.recipe.parent / "mine.jsonl").read_text().splitlines()]
    assert {d.answer for d in corpus.demonstrations.train} <= {r["told"] for r in rows}
    assert len(corpus.demonstrations) == len(rows) and not corpus.rejected
    assert "made-up" in done.manifest("sft")["described"]["base"] or done.manifest("sft")["base_fingerprint"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("reward.loss=hinges", "must be one of 'pairs', 'plackett_luce', 'hinge', not 'hinges'. Did you mean 'hinge'"),
        ("reward.pooling=higest", "Did you mean 'highest'"),
        ("evaluation.metrics=[censsus]", "no metric 'censsus'. Did you mean 'census'"),
        (
            "evaluation.judges=[{name: j, kind: alphabeth}]",
            "must be one of 'chat', 'alphabet', not 'alphabeth'. Did you mean 'alphabet'",
        ),
        ("stages=[polsih]", "no stage 'polsih'. Did you mean 'polish'"),
    ],
)
def test_a_misspelt_name_is_refused_with_the_nearest(setting: str, message: str, done: Done) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(done.recipe, [setting])
    assert message in str(caught.value)


# -- no second list --------------------------------------------------------------------------------------------------


def names_in(node: ast.AST) -> set[str]:
    """Stage names that stand side by side in a literal tuple, list, set or as the keys of a dict."""
    items = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", ())
    return {str(i.value) for i in items if isinstance(i, ast.Constant)} & set(STAGES)


def test_the_table_is_the_only_list_of_stages() -> None:
    found = []
    for room in ("data", "models", "reward", "stages", "evaluation", "pipelines"):
        for file in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Tuple | ast.List | ast.Set | ast.Dict) and len(names_in(node)) >= 3:
                    found.append(f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}")
    assert {f.partition(":")[0] for f in found} == {"pipelines/stages/table.py"}, found


def test_a_second_list_would_be_seen() -> None:
    assert len(names_in(ast.parse("('sft', 'reward', 'ppo')", mode="eval").body)) == 3
