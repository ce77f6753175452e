"""A reward model over all of its rankings, by folds, beside a linear model of the words on the same folds.

    python benchmarks/reward_folds.py examples/real_model/reward.yaml --out runs/hh-folds [--folds 5] [--set K=V ...]

Each ranking is held out once: prompts (with everything that shares their group) are dealt into folds of equal size, a
reward model is trained on the other folds and scores the rankings of its own. Differences are paired by pair of
responses, and intervals take prompts as units. A stopped fold goes on where it was, and finished ones are not run
again; the table is of the folds that are there. Settings are written as on the command line of ``trivet``, and relative
paths in them start at the recipe's folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from data.common.intervals import Interval, proportion_interval  # noqa: E402
from data.common.paired_tests import paired_difference  # noqa: E402
from data.records import RankedAnswers  # noqa: E402
from models.backbone.artifacts import write_json  # noqa: E402
from pipelines.run.pipeline import Pipeline  # noqa: E402
from reward.card.accuracy import pair_outcomes  # noqa: E402
from reward.card.examine import judge  # noqa: E402
from reward.card.ngrams import ngram_scores  # noqa: E402
from reward.card.scored_once import ScoredOnce  # noqa: E402

MODEL = "reward model"
OUTCOMES = "outcomes.json"
ALWAYS = ("reward.held_out_every=0", "reward.calibration_samples=1")  # no curve, and a mean that no order depends on


def deal(groups: Iterable[str], folds: int) -> list[list[str]]:
    """Groups dealt into so many folds, in the order of their hashes: sizes differ by one at most, whatever the order.

    Raises:
        ValueError: fewer than two folds, or fewer groups than folds.
    """
    unlike = sorted(set(groups), key=lambda group: hashlib.sha256(group.encode()).hexdigest())
    if not 2 <= folds <= len(unlike):
        raise ValueError(f"{folds} folds of {len(unlike)} prompts: give 2 to {len(unlike)}")
    return [unlike[k::folds] for k in range(folds)]


def outcomes_of(
    rankings: Sequence[RankedAnswers], scores: Mapping[str, Sequence[Sequence[float]]]
) -> dict[str, list[Any]]:
    """For every ordered pair of every ranking: ``prompt``, its group, and by each scorer's name 1, 1/2 or 0.

    Args:
        rankings: n of them.
        scores: by name, a list a ranking with a score a response.
    """
    ranks = [r.ranks for r in rankings]
    found: dict[str, list[Any]] = {}
    for name, given in scores.items():
        won, owners = pair_outcomes(given, ranks)
        found |= {"prompt": [rankings[i].prompt.group for i in owners], name: won.tolist()}
    return found


def together(parts: Sequence[Mapping[str, Sequence[Any]]]) -> dict[str, Any]:
    """All folds in one: accuracies with intervals, and the model's paired differences to the others where it is there.

    Args:
        parts: of each fold as ``outcomes_of`` gives them.

    Raises:
        ValueError: a prompt that is in two folds, so that one of them was trained on it.
    """
    prompts = [set(part["prompt"]) for part in parts]
    if sum(map(len, prompts)) != len(set().union(*prompts)):
        raise ValueError("a prompt is in two folds")
    all_of = {name: [x for part in parts for x in part[name]] for name in parts[0]}
    units = all_of.pop("prompt")
    found: dict[str, Any] = {"folds": len(parts), "pairs": len(units), "prompts": len(set(units))}
    for name, won in all_of.items():
        found[name] = {"accuracy": _plain(proportion_interval(won, units))}
        if MODEL in all_of and name != MODEL:
            gain = paired_difference(all_of[MODEL], won, clusters=units, bounds=(0.0, 1.0))
            found[name]["model's less this"] = _plain(gain)
    return found


def _plain(found: Interval) -> dict[str, Any]:
    return {"mean": found.estimate, "ci95": found.ci, "n": found.n}


def run_fold(recipe: Path, settings: Sequence[str], held_out: Path, folder: Path) -> None:
    """Train on everything but the prompts of ``held_out``, score its rankings, and keep what came of it."""
    if (folder / OUTCOMES).is_file():
        return
    started = time.process_time()
    overrides = [*settings, *ALWAYS, f"data.held_out={held_out.resolve()}"]
    pipeline = Pipeline.from_recipe(recipe, overrides, run_dir=folder)
    pipeline.run(until="reward")
    split = pipeline.corpus.rankings
    train, own = list(split.train), list(split.held_out)
    pipeline.loaded.clear()
    model = pipeline.loaded.load_reward(folder / "reward")
    judged, kept = judge(ScoredOnce(model=model), own)
    taken = [_those(own[n], answers) for n, answers in kept]
    scores: dict[str, list[Any]] = {MODEL: [j.scores for j in judged]}
    for name, linear in linear_scores(train, own).items():
        scores[name] = [[linear[n][i] for i in answers] for n, answers in kept]
    scores["longest"] = [[float(tokens) for tokens in j.lengths] for j in judged]
    found: dict[str, Any] = outcomes_of(taken, scores)
    found |= {"seconds": time.process_time() - started, "training": len(train), "left_out": len(own) - len(kept)}
    write_json(folder / OUTCOMES, found)


def linear_scores(train: Sequence[RankedAnswers], own: Sequence[RankedAnswers]) -> dict[str, list[list[float]]]:
    """Scores of held-out responses by linear models of words and of characters, one list a ranking, by name."""
    kinds: tuple[tuple[Literal["word", "char"], str], ...] = (("word", "word n-grams"), ("char", "character n-grams"))
    return {name: ngram_scores(train, own, kind) for kind, name in kinds}


def baselines(recipe: Path, settings: Sequence[str], held_out: Path) -> dict[str, list[Any]]:
    """What a fold's rankings are worth without a reward model: linear models, and taking the longest response."""
    split = Pipeline.from_recipe(recipe, [*settings, f"data.held_out={held_out.resolve()}"]).corpus.rankings
    train, own = list(split.train), list(split.held_out)
    longest = {"longest": [[float(len(answer)) for answer in r.answers] for r in own]}
    return outcomes_of(own, linear_scores(train, own) | longest)


def _those(ranking: RankedAnswers, answers: Sequence[int]) -> RankedAnswers:
    """The ranking of some of its responses: those that differ for the model."""
    return RankedAnswers(
        prompt=ranking.prompt,
        answers=tuple(ranking.answers[i] for i in answers),
        ranks=tuple(ranking.ranks[i] for i in answers),
    )


def write_folds(recipe: Path, settings: Sequence[str], out: Path, folds: int) -> list[Path]:
    """A file of prompts for each fold, as ``data.held_out`` takes them; those that are there stay."""
    files = [out / f"fold_{k}.jsonl" for k in range(folds)]
    if all(file.is_file() for file in files):
        return files
    out.mkdir(parents=True, exist_ok=True)
    split = Pipeline.from_recipe(recipe, settings).corpus.rankings
    prompts = {r.prompt.group: r.prompt for part in (split.train, split.held_out) for r in part}
    for file, groups in zip(files, deal(prompts, folds), strict=True):
        rows = ([m.as_dict() for m in prompts[group].messages] for group in groups)
        file.write_text(
            "".join(json.dumps({"prompt": row}, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )
    return files


def table(found: Mapping[str, Any]) -> str:
    """Lines for a page: scorer, accuracy, and the reward model's less it."""

    def said(x: Mapping[str, Any], sign: str = "") -> str:
        low, high = x["ci95"] or (float("nan"), float("nan"))
        return f"{x['mean']:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"

    head = f"{found['pairs']:,} pairs of {found['prompts']:,} prompts, {found['folds']} folds\n\n"
    lines = ["| scorer | pairs right | the reward model's less this |", "|---|---|---|"]
    for name, one in found.items():
        if isinstance(one, dict):
            gain = said(one["model's less this"], "+") if "model's less this" in one else ""
            lines.append(f"| {name} | {said(one['accuracy'])} | {gain} |")
    return head + "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of the folds' runs")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--only", type=int, nargs="*", help="these folds alone, counted from 0")
    parser.add_argument(
        "--baselines", action="store_true", help="without a reward model: what it has to beat, in a minute"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the recipe")
    asked = parser.parse_args()
    files = write_folds(asked.recipe, asked.set, asked.out, asked.folds)
    if asked.baselines:
        print(table(together([baselines(asked.recipe, asked.set, file) for file in files])))
        return
    for k in range(asked.folds) if asked.only is None else asked.only:
        run_fold(asked.recipe, asked.set, files[k], asked.out / f"fold_{k}")
    done = [asked.out / f"fold_{k}" / OUTCOMES for k in range(asked.folds)]
    parts = [json.loads(file.read_text(encoding="utf-8")) for file in done if file.is_file()]
    numbers = ("seconds", "training", "left_out")
    found = together([{k: v for k, v in part.items() if k not in numbers} for part in parts])
    costs = {k: [part[k] for part in parts] for k in numbers}
    write_json(asked.out / "folds.json", found | {"of_folds": costs})
    print(table(found))
    print(f"CPU seconds of the folds, each in its last sitting: {', '.join(f'{s:,.0f}' for s in costs['seconds'])}")


if __name__ == "__main__":
    main()
