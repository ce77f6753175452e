"""Which ranking loss for k = 2, 4, 9 answers, and which pooling? On the demo task with known label noise.

trivet run examples/demo.yaml --until sft            # the base and SFT model that all runs share
python benchmarks/reward_losses.py runs/demo [--kind heads] [--seeds 10] [--write docs/measurements/reward_losses.md]

A pool of SFT samples is made once. Every seed draws other prompts from it, other label noise and other initial weights;
within a seed the settings see the same answers and labels, so differences are paired. Each k gets the same number of
answers (480 prompts by 2, 240 by 4, 107 by 9). Labels are the order of gold + Gumbel noise (a Plackett-Luce annotator).
Accuracy is against gold itself, without noise, on prompts and combinations never trained on.

``--kind heads`` trains the scalar head alone, on the frozen SFT model's states; ``--kind lora`` the stage's whole
reward role, as `trivet reward` does. Results are added to a JSONL file as they come; a stopped study goes on there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from data.demo.task import gold  # noqa: E402
from data.records import Prompt, RankedAnswers, ranks_from_scores  # noqa: E402
from data.splits import Corpus  # noqa: E402
from models.backbone.logprobs import make_rows  # noqa: E402
from models.backbone.scalar_head import ScalarHead  # noqa: E402
from models.backbone.seeds import derived_seed, generator  # noqa: E402
from models.sampling.generate import CachedEngine, SamplingParams, generate, sampling_noise  # noqa: E402
from pipelines.run.open_run import open_run  # noqa: E402
from reward.card.accuracy import pair_outcomes  # noqa: E402
from reward.losses import ranking_loss  # noqa: E402
from reward.model import score_rows  # noqa: E402
from stages import reward_model  # noqa: E402
from stages.settings import RewardConfig  # noqa: E402
from stages.stage import MetricsLog, StageContext  # noqa: E402

POOL, HELD_OUT, ASKED, TOKENS = 600, 120, 5, 52  # training and held-out prompts, answers to each of these, longest
PROMPTS = {2: 480, 4: 240, 9: 107}  # about 960 answers each
BATCH = {2: 16, 4: 8, 9: 4}  # rankings a step of the whole reward role: about 32 answers each
NOISES = {"heads": (0.3, 1.2), "lora": (0.3,)}
LOSSES, POOLINGS = ("pairs", "plackett_luce"), ("last", "mean", "learned")
HEAD_STEPS = 300  # of Adam, all rankings at once
START, END = "<!-- losses: {kind} -->", "<!-- /losses -->"


def settings(kind: str) -> list[tuple[int, str, str]]:
    """(k, loss, pooling). The whole reward role is costly: there poolings are compared at k = 4 alone, and losses not
    at k = 2, where the two are one function."""
    every = list(itertools.product(PROMPTS, LOSSES, POOLINGS))
    if kind == "heads":
        return every
    return [(k, loss, p) for k, loss, p in every if k == 4 or (p == "mean" and (k > 2 or loss == "pairs"))]


@dataclass(frozen=True)
class Answers:
    """k answers to each of some prompts, flat: their ids, whether they ended, texts, gold (prompts, k)."""

    prompts: list[Prompt]
    k: int
    ids: list[list[int]]
    finished: list[bool]
    texts: list[str]
    gold: np.ndarray

    def some(self, chosen: Any, k: int) -> Answers:
        flat = [int(i) * self.k + j for i in chosen for j in range(k)]
        return Answers(
            [self.prompts[i] for i in chosen], k, [self.ids[i] for i in flat], [self.finished[i] for i in flat],
            [self.texts[i] for i in flat], self.gold[np.asarray(chosen), :k],
        )  # fmt: skip


class Silent:
    def advance(self, *_: Any, **__: Any) -> None:
        """Nothing to show."""

    def phase(self, *_: Any) -> Any:
        """Nothing to show either."""
        return lambda count: None


class Study:
    """One base in memory; each run starts from the same SFT adapter."""

    def __init__(self, run: Path) -> None:
        self.pipeline = open_run(run)
        self.pipeline.processes  # noqa: B018 (sets threads)
        torch.set_num_threads(1)
        self.base, self.renderer = self.pipeline.loaded.base(), self.pipeline.loaded.renderer()
        self.sft = self.pipeline.run_dir / "sft"

    def context(self, seed: int) -> StageContext:
        out = Path(tempfile.gettempdir())  # for the trainer, which makes a folder in it
        return StageContext(
            out=out, seed=seed, open_base=lambda: (self.base, self.renderer), corpus=Corpus(),
            adapter=self.pipeline.recipe.adapter, inputs={}, processes=self.pipeline.processes,
            log=MetricsLog(Path("/dev/null")), bar=Silent(), say=lambda _: None, warn=lambda _: None,
        )  # fmt: skip

    def answers(self, prompts: list[Prompt], k: int, purpose: str) -> Answers:
        self.start()
        queries = [self.renderer.prompt_ids(p.messages) for p in prompts for _ in range(k)]
        with self.base.role("sft") as view:
            made = generate(
                CachedEngine(),
                view,
                queries,
                batch=128,
                params=SamplingParams(
                    max_new_tokens=TOKENS, temperature=1.0, stop_ids=self.renderer.stop_ids, pad_id=self.renderer.pad_id
                ),
                noise=sampling_noise(len(queries), TOKENS, generator(0, purpose)),
            )
        texts = [self.renderer.text(ids) for ids in made.ids]
        true = gold([p.text for p in prompts for _ in range(k)], texts, finished=made.finished)
        return Answers(prompts, k, made.ids, made.finished, texts, np.array(true).reshape(len(prompts), k))

    def start(self) -> None:
        self.base.drop_roles()
        self.pipeline.loaded.load("sft", "sft", self.sft)

    @torch.no_grad()
    def states(self, answers: Answers) -> list[Tensor]:
        """The SFT model's last hidden states at each answer's own tokens."""
        self.start()
        queries = [self.renderer.prompt_ids(p.messages) for p in answers.prompts for _ in range(answers.k)]
        out: list[Tensor] = []
        with self.base.role("sft") as view:
            for at in range(0, len(queries), 64):
                rows = make_rows(queries[at : at + 64], answers.ids[at : at + 64], self.renderer.pad_id, "cpu")
                hidden = view.hidden(rows.ids, rows.mask)
                for h, q, n in zip(hidden, rows.query_lengths.tolist(), rows.lengths.tolist(), strict=True):
                    out.append(h[q:n].clone())
        return out

    def labels(self, answers: Answers, noise: float, seed: int) -> tuple[list[tuple[int, ...]], float]:
        """Ranks by gold + noise, and the share of pairs in which they agree with gold."""
        rng = np.random.default_rng(derived_seed(seed, f"study/noise/{answers.k}"))
        noisy = (answers.gold + noise * rng.gumbel(size=answers.gold.shape)).tolist()
        agree, _ = pair_outcomes(noisy, [ranks_from_scores(row) for row in answers.gold.tolist()])
        return [ranks_from_scores(row) for row in noisy], float(agree.mean())

    def train(self, answers: Answers, ranks: Any, seed: int, config: RewardConfig, held: Answers) -> np.ndarray:
        """Scores of the held-out answers by a whole reward role."""
        self.start()
        context, k = self.context(seed), answers.k
        rankings = [
            RankedAnswers(
                prompt=p, answers=tuple(answers.texts[i * k : (i + 1) * k]), ranks=r,
                finished=tuple(answers.finished[i * k : (i + 1) * k]),
            )
            for i, (p, r) in enumerate(zip(answers.prompts, ranks, strict=True))
        ]  # fmt: skip
        rows, _ = reward_model.encode(context, rankings, config)
        self.base.add_role("reward", context.adapter, copy_of="sft", head=True, seed=seed)
        if config.pooling == "learned":
            self.base.heads["reward"].add_attention()  # type: ignore[operator]
        reward_model.fit(context, rows, config)
        queries = [self.renderer.prompt_ids(p.messages) for p in held.prompts for _ in range(held.k)]
        scores = score_rows(self.base, "reward", queries, held.ids, self.renderer.pad_id, 64, config.pooling)
        return scores.double().reshape(held.gold.shape).numpy()


def padded(states: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(N, L, D) and (N, L) True at real tokens."""
    lengths = torch.tensor([len(s) for s in states])
    inside = torch.arange(int(lengths.max())) < lengths[:, None]
    return torch.nn.utils.rnn.pad_sequence(states, batch_first=True), inside


def scorer(states: list[Tensor], pooling: str) -> Callable[[ScalarHead], Tensor]:
    """Scores of fixed states by a head; what does not depend on the head is computed once."""
    if pooling != "learned":
        pooled = torch.stack([s[-1] if pooling == "last" else s.mean(0) for s in states])
        return lambda head: head(pooled)
    hidden, inside = padded(states)
    return lambda head: (head.weights(hidden, inside) * torch.where(inside, head(hidden), 0.0)).sum(1)


def train_head(states: list[Tensor], ranks: Tensor, held: list[Tensor], loss: str, pooling: str, seed: int) -> Tensor:
    """Scores of the held-out states by a head that was trained on the others."""
    head = ScalarHead(states[0].shape[1], generator(seed, "study/head"))
    if pooling == "learned":
        head.add_attention()
    score, steps = scorer(states, pooling), HEAD_STEPS
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        ranking_loss(score(head).reshape(ranks.shape), ranks, loss).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return scorer(held, pooling)(head)


def run_study(study: Study, kind: str, seeds: int, done: set[tuple[Any, ...]], write: Callable[[Any], None]) -> None:
    """Every setting of every seed that is not done."""
    corpus = study.pipeline.corpus.prompts
    pool = study.answers(list(corpus.train[:POOL]), max(PROMPTS), "study/pool")
    held = study.answers(list(corpus.held_out[:HELD_OUT]), ASKED, "study/held")
    states, held_states = (study.states(pool), study.states(held)) if kind == "heads" else ([], [])
    true_ranks = [ranks_from_scores(row) for row in held.gold.tolist()]
    for noise, seed in itertools.product(NOISES[kind], range(seeds)):
        order = np.random.default_rng(derived_seed(seed, "study/prompts")).permutation(POOL)
        for k, loss, pooling in settings(kind):
            if (kind, seed, noise, k, loss, pooling) in done:
                continue
            started, chosen = time.process_time(), order[: PROMPTS[k]]
            answers = pool.some(chosen, k)
            ranks, agree = study.labels(answers, noise, seed)
            if kind == "heads":
                mine = [states[int(i) * pool.k + j] for i in chosen for j in range(k)]
                flat = train_head(mine, torch.tensor(ranks), held_states, loss, pooling, seed)
                scores = flat.double().reshape(held.gold.shape).numpy()
            else:
                config = RewardConfig(
                    loss=loss, pooling=pooling, epochs=2, batch=BATCH[k], micro_batch=BATCH[k], learning_rate=3e-3
                )
                scores = study.train(answers, ranks, seed, config, held)
            outcomes, _ = pair_outcomes(scores.tolist(), true_ranks)
            best = held.gold[np.arange(len(held.gold)), scores.argmax(1)]
            write({
                "kind": kind, "seed": seed, "noise": noise, "k": k, "loss": loss, "pooling": pooling,
                "labels_agree": agree, "accuracy": float(outcomes.mean()), "gold_of_best": float(best.mean()),
                "gold_of_all": float(held.gold.mean()), "cpu_seconds": round(time.process_time() - started, 2),
            })  # fmt: skip


# -- tables ----------------------------------------------------------------------------------------------------------


def interval(values: Any) -> str:
    """Mean with Student's 95 % interval over seeds, in points."""
    x = 100 * np.asarray(values, dtype=float)
    half = stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5
    return f"{x.mean():.1f} ± {half:.1f}"


def tables(rows: list[dict[str, Any]], kind: str) -> str:
    rows = [r for r in rows if r["kind"] == kind]
    found = {(r["noise"], r["k"], r["loss"], r["pooling"], r["seed"]): r["accuracy"] for r in rows}
    every = settings(kind)
    whole = {n: sorted({s for *_, s in found if all((n, *x, s) in found for x in every)}) for n in NOISES[kind]}
    noises = [n for n in whole if len(whole[n]) > 1]

    def of(noise: float, *setting: Any) -> np.ndarray:
        return np.array([found[(noise, *setting, s)] for s in whole[noise]])

    def difference(noise: float, k: int, place: int, a: str, b: str) -> str:
        """Setting ``a`` less ``b`` at one place of (k, loss, pooling), over everything that both were run with."""
        pairs = [(x, (*x[:place], b, *x[place + 1 :])) for x in every if x[0] == k and x[place] == a]
        found = [of(noise, *x) - of(noise, *y) for x, y in pairs if y in every]
        return interval(np.mean(found, axis=0)) if found else ""

    agree = {n: np.mean([r["labels_agree"] for r in rows if r["noise"] == n]) for n in noises}
    count = ", ".join(f"{len(whole[n])} where {agree[n]:.0%} of the labels are right" for n in noises)
    out = [f"Held-out pair accuracy against gold in %, mean ± 95 % (Student) over seeds ({count}).", ""]
    out += ["| labels right | k | loss | last | mean | learned |", "|---|---|---|---|---|---|"]
    for noise, k, loss in itertools.product(noises, PROMPTS, LOSSES):
        cells = " | ".join(interval(of(noise, k, loss, p)) if (k, loss, p) in every else "" for p in POOLINGS)
        out.append(f"| {agree[noise]:.0%} | {k} | `{loss}` | {cells} |")
    out += ["", "Paired differences in points (same seed, answers and labels):", ""]
    out += ["| labels right | k | Plackett-Luce − pairs | mean − last | learned − mean |", "|---|---|---|---|---|"]
    for noise, k in itertools.product(noises, PROMPTS):
        cells = " | ".join(
            difference(noise, k, *x)
            for x in ((1, "plackett_luce", "pairs"), (2, "mean", "last"), (2, "learned", "mean"))
        )
        out.append(f"| {agree[noise]:.0%} | {k} | {cells} |")
    return "\n".join(out) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="a run of the demo with a finished SFT stage")
    parser.add_argument("--kind", choices=list(NOISES), default="heads")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/reward_losses.jsonl")
    parser.add_argument("--write", type=Path, help="put the tables between the marks in this file")
    options = parser.parse_args()
    known = options.results.read_text().splitlines() if options.results.is_file() else []
    rows = [json.loads(line) for line in known]

    def write(row: dict[str, Any]) -> None:
        rows.append(row)
        with options.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)

    if options.run:
        done = {tuple(r[k] for k in ("kind", "seed", "noise", "k", "loss", "pooling")) for r in rows}
        run_study(Study(options.run), options.kind, options.seeds, done, write)
    text = tables(rows, options.kind)
    print(text)
    if options.write:
        start = START.format(kind=options.kind)
        before, _, rest = options.write.read_text(encoding="utf-8").partition(start)
        after = rest.partition(END)[2]
        options.write.write_text(f"{before}{start}\n{text}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
