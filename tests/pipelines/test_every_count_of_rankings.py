"""Every number that is claimed of sampled rankings, against a count made here from ``rankings.jsonl`` and the files.

Few words and short responses, so that responses of one prompt are often equal; prompts longer than the reward's limit;
an annotator of few values, with noise. Nothing of the count calls the code under test.
"""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from pipelines.report.page import write_report
from pipelines.report.run_files import read_run
from pipelines.report.stage_facts import facts
from pipelines.run.pipeline import Pipeline
from stages import rankings
from tests.support.finished_run import Tags
from tests.support.recipes import RECIPE

SHORT, LONG, HELD, K, TOKENS, LIMIT = 20, 4, 6, 3, 3, 10
ASKED, ASKED_HELD = 22, 5  # the first two of the long ones are asked
JUDGE = """
def judge(prompts, completions, finished):
    return [len(set(c.split())) + 2 * f for c, f in zip(completions, finished)]
"""


KNOWN = ("w0", "w1", "w2")
"""The words of the documents, and so of the tokenizer; of template and prompts it knows no other."""


def words(count: int) -> str:
    return " ".join(f"w{i % 3}" for i in range(count))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("ranked")
    (folder / "own.py").write_text(JUDGE)
    (folder / "documents.txt").write_text("\n".join([words(9)] * 40) + "\n")
    held = [{"prompt": f"held w{i}"} for i in range(HELD)]
    asked = [{"prompt": f"say w{i}"} for i in range(SHORT)] + [{"prompt": f"say w{i} {words(9)}"} for i in range(LONG)]
    (folder / "held.jsonl").write_text("".join(json.dumps(p) + "\n" for p in held))
    (folder / "prompts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in asked + held))
    recipe: dict[str, Any] = {k: v for k, v in RECIPE.items() if k not in ("sft", "ppo", "evaluation")} | {
        "data": {"documents": "documents.txt", "prompts": "prompts.jsonl", "held_out": "held.jsonl",
                 "text_unit": "line"},
        "rankings": {"annotator": "own.py:judge", "prompts": ASKED, "held_out_prompts": ASKED_HELD, "answers": K,
                     "max_new_tokens": TOKENS, "batch": 5, "noise": 1.0},
        "reward": {"epochs": 1, "learning_rate": 3e-3, "batch": 8, "micro_batch": 8, "max_tokens": LIMIT,
                   "init": "base"},
    }  # fmt: skip
    (folder / "recipe.json").write_text(json.dumps(recipe))
    pipeline = Pipeline.from_recipe(folder / "recipe.json", run_dir=folder / "run")
    pipeline.run(until="reward")
    return pipeline


def rows_of(made: Pipeline) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (made.run_dir / "rankings" / "rankings.jsonl").read_text().splitlines()]


def manifest(made: Pipeline, stage: str) -> dict[str, Any]:
    return json.loads((made.run_dir / stage / "manifest.json").read_text())


def judged(row: dict[str, Any]) -> list[int]:
    """What the annotator says, again."""
    return [len(set(r.split())) + 2 * f for r, f in zip(row["responses"], row["finished"], strict=True)]


def agreement(rows: list[dict[str, Any]]) -> float:
    """Of each prompt the share of its pairs of unequal scores that the ranks order alike; the mean over prompts."""
    shares = []
    for row in rows:
        told, ranks = judged(row), row["ranks"]
        pairs = [(i, j) for i, j in itertools.combinations(range(K), 2) if told[i] != told[j]]
        right = [(told[i] > told[j]) == (ranks[i] < ranks[j]) for i, j in pairs]
        shares += [sum(right) / len(right)] if right else []
    return statistics.fmean(shares)


def test_the_file_has_what_was_asked_for(made: Pipeline) -> None:
    rows = rows_of(made)
    prompts = [row["prompt"][-1]["content"] for row in rows]
    long = [f"say w{i} {words(9)}" for i in range(ASKED - SHORT)]
    assert prompts == [*(f"say w{i}" for i in range(SHORT)), *long, *(f"held w{i}" for i in range(ASKED_HELD))]
    assert [row["split"] for row in rows] == ["train"] * ASKED + ["held_out"] * ASKED_HELD
    for row in rows:
        assert len(row["responses"]) == len(row["finished"]) == len(row["ranks"]) == K
        assert row["scores"] == judged(row)
        for response, ended in zip(row["responses"], row["finished"], strict=True):
            assert len(response.split()) <= TOKENS - ended  # the stop token is one of them


def test_every_number_of_the_rankings_is_as_counted(made: Pipeline) -> None:
    rows = rows_of(made)
    ended = [f for row in rows for f in row["finished"]]
    scores = [s for row in rows for s in judged(row)]
    assert 0 < sum(ended) < len(ended) and agreement(rows) < 1  # the noise does something
    claimed = manifest(made, "rankings")["metrics"]
    (warning,) = claimed.pop("warnings")
    assert f"{len(ended) - sum(ended)} of {len(ended)} sampled responses were cut" in warning["text"]
    counts = {"answers": len(ended), "unfinished": len(ended) - sum(ended), "limit": TOKENS}
    assert claimed.pop("annotator_mean") == pytest.approx(statistics.fmean(scores))
    assert claimed.pop("labels_agree_with_annotator") == pytest.approx(agreement(rows))
    assert claimed == {"rankings": ASKED, "held_out_rankings": ASKED_HELD, "counts": counts}
    (line,) = (made.run_dir / "rankings" / "metrics.jsonl").read_text().splitlines()
    told = {k: v for k, v in json.loads(line).items() if not k.startswith(("time/", "memory/"))}
    assert told.pop("annotator_mean") == pytest.approx(statistics.fmean(scores))
    assert told == {"step": len(ended), **{f"data/{name}": n for name, n in counts.items()}}
    least = sum(len(r.split()) + f for row in rows for r, f in zip(row["responses"], row["finished"], strict=True))
    sampled = json.loads((made.run_dir / "run.json").read_text())["stages"]["rankings"]["tokens"]
    assert least <= sampled <= TOKENS * len(ended)  # special tokens are sampled, and in no text
    planned = next(p.details for p in made.plan() if p.name == "rankings")
    assert planned["steps"] == len(ended) and planned["takes"].tokens == TOKENS * len(ended)
    assert planned["rows"] == {"prompts": ASKED}


def fitted(prompt: str, response: str, ended: bool) -> tuple[int, int]:
    """Tokens of "user : PROMPT assistant :" and of the response that stay: the prompt is cut first, down to eight."""
    query, said = 4 + len(prompt.split()), len(response.split()) + ended
    query = min(query, max(LIMIT - said, min(8, query)))
    return query, min(said, LIMIT - query)


def counted(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the reward stage can use of sampled rankings."""
    out: dict[str, Any] = {"rows": len(rows), "cut": 0, "cut_answers": 0, "cut_prompts": 0, "dropped": 0}
    equal, cut_equal, totals, tokens, unknown = 0, 0, [], 0, 0
    for row in rows:
        prompt = row["prompt"][-1]["content"]
        kept: dict[tuple[Any, ...], int] = {}
        cut_prompt, cut_answer, sizes = False, False, []
        for response, ended, rank in zip(row["responses"], row["finished"], row["ranks"], strict=True):
            query, said = fitted(prompt, response, ended)
            before = 4 + len(prompt.split()), len(response.split()) + ended
            cut_prompt |= before[0] > query
            cut_answer |= before[1] > said
            sizes.append(sum(before))
            if said:
                kept.setdefault((query, *[*response.split(), "."][:said]), rank)
        totals.append(max(sizes))
        if len(set(kept.values())) < 2:
            out["dropped"] += 1
            cut_equal += cut_prompt or cut_answer
            equal += not (cut_prompt or cut_answer)
            continue
        for response, ended in zip(row["responses"], row["finished"], strict=True):
            query, said = fitted(prompt, response, ended)
            tokens += query + said
            asked = f"user : {prompt} assistant :".split()[-query:]  # a prompt loses its beginning
            unknown += sum(word not in KNOWN for word in [*asked, *response.split()[:said]])
        out["cut_prompts"] += cut_prompt
        out["cut_answers"] += cut_answer
        out["cut"] += cut_prompt or cut_answer
    whole = next(t for t in sorted(totals) if sum(x <= t for x in totals) >= 0.95 * len(totals))
    out |= {"used": len(rows) - out["dropped"], "limit": LIMIT, "limit_for_95_percent": whole}
    out |= {"tokens": tokens, "unknown_tokens": unknown}
    reasons = {"its responses are equal once cut": cut_equal, "no two distinct responses of different rank": equal}
    return out | {f"dropped: {why}": n for why, n in reasons.items() if n}


def test_what_the_reward_stage_uses_of_them_is_as_counted(made: Pipeline) -> None:
    rows, claimed = rows_of(made), manifest(made, "reward")["metrics"]
    train = counted([row for row in rows if row["split"] == "train"])
    held_out = counted([row for row in rows if row["split"] == "held_out"])
    assert train["dropped"] and train["cut_prompts"] and train["used"] > 8  # all are planted
    assert claimed["counts"] == train
    assert claimed["held_out_counts"] == held_out
    assert claimed["rankings"] == train["used"] and claimed["dropped"] == train["dropped"]
    assert claimed["held_out_rankings"] == claimed["held_out_examined"] == held_out["used"]
    assert claimed["steps"] == -(-train["used"] // 8)


def test_the_report_says_the_same(made: Pipeline) -> None:
    rows = rows_of(made)
    told = dict(facts(read_run(made.run_dir)))["Rankings"]
    ended = [f for row in rows for f in row["finished"]]
    scores = [s for row in rows for s in judged(row)]
    assert told == {
        "annotator mean": f"{statistics.fmean(scores):.3g}", "labels agree with annotator": f"{agreement(rows):.3f}",
        "rankings": str(ASKED), "held out rankings": str(ASKED_HELD), "answers": str(len(ended)), "limit": str(TOKENS),
        "unfinished": str(len(ended) - sum(ended)),
    }  # fmt: skip
    page = Tags(write_report(made.run_dir).read_text()).text
    assert all(name in page for name in told)


class Stopped(Exception):
    """Instead of a batch of responses."""


def test_a_resumed_stage_counts_no_response_twice(
    made: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of the held-out prompts; the counts are those of the whole."""
    # eight responses at a time: 66 to training prompts are nine batches, 15 to held-out ones two
    settings, sizes = ["rankings.batch=2", "checkpoint.every_minutes=0"], []
    plain = rankings.generate

    def generate(*args: Any, **kwargs: Any) -> Any:
        sizes.append(len(args[2]))
        if len(sizes) == 11:
            raise Stopped
        return plain(*args, **kwargs)

    monkeypatch.setattr(rankings, "generate", generate)
    for _ in range(2):
        pipeline = Pipeline.from_recipe(made.run_dir.parent / "recipe.json", settings, run_dir=tmp_path / "run")
        if len(sizes) < 11:
            with pytest.raises(Stopped):
                pipeline.run(until="rankings")
        else:
            pipeline.run(until="rankings")
    assert sizes == [8] * 8 + [2, 8, 7, 7]  # the stopped batch, and that alone, was made again
    claimed, rows = manifest(pipeline, "rankings")["metrics"], rows_of(pipeline)
    assert claimed["counts"]["answers"] == K * (ASKED + ASKED_HELD) == sum(len(row["responses"]) for row in rows)
    assert claimed["counts"]["unfinished"] == sum(not f for row in rows for f in row["finished"])
    assert len(rows) == ASKED + ASKED_HELD == claimed["rankings"] + claimed["held_out_rankings"]
