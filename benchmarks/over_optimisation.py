"""How far can PPO go before a reward model misleads it, and what helps? On finished runs of the demo, gold known.

trivet run examples/demo.yaml --run-dir runs/201 --set seed=201          # and other seeds
python benchmarks/over_optimisation.py runs/201 runs/202 ... [--write docs/measurements/over_optimisation.md]

Each run lends its base, its SFT model and some of its ranked answers, with labels drawn anew: a reward model that is
weak on purpose, an ensemble of three (the first of which is that one), and a watcher from other prompts. Then PPO goes
far beyond what is good, without KL control (one reward model, and the ensemble) and with the demo's. Every few updates
gold, proxy, watcher and KL are read off answers to held-out prompts, with the same draws each time. The watcher chooses
a checkpoint as `ppo.keep: best` does, by training prompts. Best of n is sampled from the SFT model.

Every finished (seed, arm) is a line of the results file and is not run again. ``--updates`` and others say how far.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from gao_forms import NAMES, best_of_n, best_of_n_kl, tables  # noqa: E402

from data.demo.task import gold  # noqa: E402
from data.records import Prompt, ranks_from_scores  # noqa: E402
from models.backbone.logprobs import make_rows  # noqa: E402
from models.backbone.seeds import derived_seed, generator  # noqa: E402
from models.sampling.fast import FastEngine  # noqa: E402
from models.sampling.generate import Generated, SamplingParams, generate, sampling_noise  # noqa: E402
from pipelines import Pipeline  # noqa: E402
from reward.model import RewardModel  # noqa: E402
from reward.terms.composition import compose  # noqa: E402
from stages.ppo.holdout_monitor import HoldoutMonitor  # noqa: E402
from stages.ppo.rollout import micro_batches, policy_pass  # noqa: E402
from stages.ppo.stage import add_roles, counted_prompts  # noqa: E402
from stages.ppo.update import PPO  # noqa: E402
from stages.rankings import FILE  # noqa: E402
from stages.stage import MetricsLog, StageContext  # noqa: E402

START, END = "<!-- over-optimisation -->", "<!-- /over-optimisation -->"


@dataclass(frozen=True)
class Settings:
    """What a row was made with; rows made with other settings are not mixed."""

    rankings: int = 1000  # prompts, half of them the watcher's
    answers: int = 4
    noise: float = 0.3
    epochs: float = 2
    updates: int = 39
    every: int = 3  # updates between looks
    learning_rate: float = 3e-3  # as in the demo, but constant
    held_out: int = 96  # prompts of a look
    most: int = 64  # of best of n
    combine: str = "mean_minus_std"


class Silent:
    def advance(self, *_: Any, **__: Any) -> None:
        """Nothing to show."""

    def phase(self, *_: Any) -> Any:
        """Nothing to show either."""
        return lambda count: None


class Study:
    """One finished run of the demo, and reward models of its own from few rankings."""

    def __init__(self, run: Path, work: Path, settings: Settings) -> None:
        self.settings = settings
        self.seed = int(json.loads((run / "run.json").read_text(encoding="utf-8"))["seed"])
        self.folder = work / f"{self.seed}"
        weaken(run / "rankings", self.folder / "given", self.seed, settings)
        given = {name: str(run / name) for name in ("pretrain", "sft")} | {"rankings": str(self.folder / "given")}
        asked = [
            "reward.ensemble=3", f"reward.combine={settings.combine}", "reward.holdout=0.5",
            f"reward.epochs={settings.epochs}", "reward.gate=off",
        ]  # fmt: skip
        self.pipeline = Pipeline.from_recipe(run / "recipe.yaml", asked, self.folder, given)
        self.pipeline.run(only=["reward"])
        self.sft = run / "sft"
        self.base, self.renderer = self.pipeline.loaded.base(), self.pipeline.loaded.renderer()
        self.held_out = self.pipeline.corpus.prompts.held_out[: settings.held_out]

    def context(self) -> StageContext:
        return StageContext(
            out=self.folder, seed=self.seed, open_base=lambda: (self.base, self.renderer), corpus=self.pipeline.corpus,
            adapter=self.pipeline.recipe.adapter, inputs={}, processes=self.pipeline.processes,
            log=MetricsLog(Path("/dev/null")), bar=Silent(), say=lambda _: None, warn=print,
        )  # fmt: skip

    def load(self, ensemble: bool) -> tuple[RewardModel, RewardModel]:
        """The roles anew: the reward model that pays (the ensemble, or its first member) and the watcher."""
        loaded = self.pipeline.loaded
        loaded.clear()
        loaded.load("sft", "reference", self.sft)
        model, holdout_model = (
            loaded.load_reward(self.folder / "reward"),
            loaded.load_holdout_model(self.folder / "reward"),
        )
        assert holdout_model is not None
        first = model.members[0]
        return (
            model if ensemble else replace(model, members=(), score_mean=first.score_mean, score_std=first.score_std)
        ), holdout_model

    def sample(self, role: str, prompts: Sequence[Prompt], purpose: str) -> tuple[list[list[int]], Generated]:
        """Queries and one answer each; the same purpose draws the same uniform numbers."""
        queries = [self.renderer.prompt_ids(p.messages) for p in prompts]
        longest = self.pipeline.recipe.ppo.max_new_tokens
        with self.base.role(role) as view:
            made = generate(
                FastEngine(),
                view,
                queries,
                batch=256,
                params=SamplingParams(
                    max_new_tokens=longest,
                    temperature=1.0,
                    stop_ids=self.renderer.stop_ids,
                    pad_id=self.context().pad_id,
                ),
                noise=sampling_noise(len(queries), longest, generator(self.seed, purpose)),
            )
        return queries, made

    def golds(self, prompts: Sequence[Prompt], made: Generated) -> np.ndarray:
        texts = [self.renderer.text(ids) for ids in made.ids]
        return np.array(gold([p.text for p in prompts], texts, finished=made.finished))

    @torch.no_grad()
    def evaluation(self, update: int, model: RewardModel, holdout_model: RewardModel) -> dict[str, float]:
        """Means over the policy's answers to held-out prompts; scores in spreads of SFT samples, KL in nats."""
        queries, made = self.sample("policy", self.held_out, "over-optimisation/look")
        found = {"kl": self.kl(queries, made.ids), "gold": float(self.golds(self.held_out, made).mean())}
        for name, scorer in (("proxy", model), ("watcher", holdout_model)):
            found[name] = float(scorer.score_ids(queries, made.ids).mean()) / scorer.score_std
        return {"update": update, **found, "length": float(np.mean([len(ids) for ids in made.ids]))}

    def kl(self, queries: Sequence[list[int]], answers: Sequence[list[int]]) -> float:
        """Mean over answers of the summed log-ratio of policy and reference."""
        total = 0.0
        for index in micro_batches([len(ids) for ids in answers], 64):
            rows = make_rows([queries[i] for i in index], [answers[i] for i in index], self.context().pad_id, "cpu")
            logprobs = []
            for role in ("policy", "reference"):
                with self.base.role(role) as view:
                    logprobs.append(policy_pass(view, rows, 1.0)[0].double().sum().item())
            total += logprobs[0] - logprobs[1]
        return total / len(answers)

    def ppo(self, arm: str) -> dict[str, Any]:
        """PPO from the SFT model on, with looks; the demo's settings but for what the arm and the study change."""
        settings, recipe = self.settings, self.pipeline.recipe
        model, holdout_model = self.load(ensemble=arm == "ensemble")
        changes = {
            "updates": settings.updates, "holdout_every": settings.every, "score_clip": None, "keep": "best",
            "learning_rate": settings.learning_rate, "schedule": "constant",
            "kl_coef": recipe.ppo.kl_coef if arm == "kl" else 0.0,
        }  # fmt: skip
        config, context = recipe.ppo.model_copy(update=changes), self.context()
        add_roles(context, config, model)
        reward = compose(config.reward, model, recipe.base_dir, standardise=config.standardise_scores)
        ppo = PPO(context, config, counted_prompts(context, config)[0], reward)
        watcher, evaluations = HoldoutMonitor(ppo, holdout_model, model), [self.evaluation(0, model, holdout_model)]
        watcher.evaluate()
        for _ in ppo.train():
            if watcher.due:
                watcher.evaluate()
                evaluations.append(self.evaluation(ppo.update_index, model, holdout_model))
                print(f"  {self.seed} {arm}:", {k: round(v, 2) for k, v in evaluations[-1].items()}, flush=True)
        onset = watcher.summary()["onset"]
        return {"looks": evaluations, "chosen": watcher.summary()["best_update"], "parted": onset}

    def best_of_n(self) -> dict[str, Any]:
        """Best of n SFT samples by the one reward model, as looks by n."""
        model, holdout_model = self.load(ensemble=False)
        most, n = self.settings.most, 1
        prompts = [p for p in self.held_out for _ in range(most)]
        queries, made = self.sample("reference", prompts, "over-optimisation/best-of-n")
        shape = (len(self.held_out), most)
        proxy, watcher = (
            scorer.score_ids(queries, made.ids).double().numpy().reshape(shape) / scorer.score_std
            for scorer in (model, holdout_model)
        )
        true = self.golds(prompts, made).reshape(shape)
        evaluations = []
        while n <= most:
            values = {"gold": true, "proxy": proxy, "watcher": watcher}
            means = {name: best_of_n(proxy, value, n) for name, value in values.items()}
            evaluations.append({"update": n, "kl": best_of_n_kl(n), **means})
            n *= 2
        return {"looks": evaluations, "gold_spread": float(true.std(ddof=1))}

    def accuracies(self) -> dict[str, Any]:
        """Held-out pair accuracy of the ensemble and of the watcher, by the reward stage."""
        found = json.loads((self.folder / "reward" / "manifest.json").read_text(encoding="utf-8"))["metrics"]
        return {"accuracy": found["pair_accuracy"], "watcher_accuracy": found["watcher"]["pair_accuracy"]}


def weaken(source: Path, target: Path, seed: int, settings: Settings) -> None:
    """Fewer rankings of fewer answers, with labels of their own; the held-out ones all, cut and labelled alike."""
    rng = np.random.default_rng(derived_seed(seed, "over-optimisation/noise"))
    kept, train = [], 0
    for line in (source / FILE).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        train += row["split"] == "train"
        if row["split"] == "train" and train > settings.rankings:
            continue
        for name in ("responses", "scores", "finished"):
            row[name] = row[name][: settings.answers]
        noise = settings.noise * rng.gumbel(size=len(row["scores"]))
        row["ranks"] = list(ranks_from_scores((np.array(row["scores"]) + noise).tolist()))
        kept.append(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")
    target.mkdir(parents=True, exist_ok=True)
    (target / FILE).write_text("".join(kept), encoding="utf-8")


def run_study(
    runs: Sequence[Path], work: Path, settings: Settings, done: set[tuple[int, str]], write: Callable[[Any], None]
) -> None:
    """Every arm of every run that is not done."""
    for run in runs:
        seed = int(json.loads((run / "run.json").read_text(encoding="utf-8"))["seed"])
        left = [arm for arm in ("best_of_n", *NAMES) if (seed, arm) not in done]
        study = Study(run, work, settings) if left else None
        for arm in left:
            assert study is not None
            started = time.process_time()
            found = study.best_of_n() if arm == "best_of_n" else study.ppo(arm)
            cpu = round(time.process_time() - started, 1)
            row = {"seed": seed, "arm": arm, "settings": asdict(settings), **study.accuracies(), **found}
            write(row | {"cpu_seconds": cpu})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", help="finished runs of the demo, one a seed")
    parser.add_argument("--work", type=Path, default=Path("runs/over-optimisation"), help="for the weak reward models")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/over_optimisation.jsonl")
    for name, default in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"{default}")
    parser.add_argument("--write", type=Path, help="put the tables between the marks in this file")
    parser.add_argument("--figure", type=Path, help="draw the figure into this PNG file (needs chromium)")
    options = parser.parse_args()
    settings = Settings(**{name: getattr(options, name) for name in asdict(Settings())})
    known = options.results.read_text(encoding="utf-8").splitlines() if options.results.is_file() else []
    rows = [row for row in map(json.loads, known) if row["settings"] == asdict(settings)]

    def write(row: dict[str, Any]) -> None:
        rows.append(row)
        with options.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    run_study(options.runs, options.work, settings, {(r["seed"], r["arm"]) for r in rows}, write)
    text = tables(rows)
    print(text)
    if options.write:
        before, _, rest = options.write.read_text(encoding="utf-8").partition(START)
        after = rest.partition(END)[2]
        options.write.write_text(f"{before}{START}\n{text}{END}{after}", encoding="utf-8")
    if options.figure:
        from gao_figure import draw_figure

        draw_figure(
            rows, options.figure, shutil.which("chromium") or shutil.which("chromium-browser") or "google-chrome"
        )


if __name__ == "__main__":
    main()
