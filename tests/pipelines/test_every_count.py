"""Every number that a run's manifests, metrics and report claim of its data, against a count made here from the files.

One tiny run with planted cuts, drops and rejections. The count knows the input files, the recipe's limits and the
documented rules; nothing of it calls the code under test. A number that is neither counted here nor listed as measured
fails the test, so that a new claim needs a count.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from pipelines.execution.progress import Bar
from pipelines.report.page import write_report
from pipelines.report.run_files import read_run
from pipelines.report.stage_facts import facts
from pipelines.run.pipeline import Pipeline
from tests.support.finished_run import Tags
from tests.support.recipes import RECIPE
from tests.support.recount import (
    carded,
    cells_of,
    checked,
    compared,
    described,
    documents_of,
    shared_prompts,
    sizes_of,
    uncounted,
)

LIMIT, PROMPT_LIMIT, HOLDOUT, CONTEXT, BATCH, MEMBERS = 32, 20, 0.3, 128, 8, 2
GROUPS = {"counts": "", "held_out_counts": "held_out", "holdout_counts": "holdout"}
MEASURED = re.compile(
    r"(held_out_curves/\w+/(best_step|change|.*(loss|accuracy)$)|learnt|held_out_nll|score_(mean|std)|pair_accuracy|longer_is_better|objective/|rollout/|probe|report_card|holdout)"
)
"""What is computed by the model and no count; whole numbers among it are looked at all the same where they can be."""


UNKNOWN = "zz"
"""A word of no document, so that the tokenizer has no token for it."""


def words(count: int) -> str:
    return " ".join(f"w{i % 40}" for i in range(count))


def demonstrations() -> list[dict[str, str]]:
    rows = [{"prompt": f"say w{i} {words(3)}", "completion": words(4)} for i in range(30)]
    rows[5]["completion"] = rows[7]["completion"] = f"{words(2)} {UNKNOWN} {UNKNOWN}"
    rows += [{"prompt": f"tell w{i} {words(3)}", "completion": words(50)} for i in range(3)]
    rows += [{"prompt": f"long w{i} {words(40)}", "completion": words(4)} for i in range(2)]
    return rows + [{"prompt": f"held w{i}", "completion": words(60 if i == 0 else 4)} for i in range(3)]


def rankings() -> list[dict[str, str]]:
    rows = [{"prompt": f"say w{i} {words(3)}", "chosen": words(4), "rejected": words(6)} for i in range(24)]
    rows[3]["prompt"] += f" {UNKNOWN}"
    rows += [{"prompt": f"same w{i}", "chosen": words(50) + " w1", "rejected": words(50)} for i in range(3)]
    rows += [{"prompt": f"half w{i}", "chosen": words(50) + " w1", "rejected": "w2"} for i in range(3)]
    return rows + [{"prompt": f"held w{i}", "chosen": words(4), "rejected": words(70)} for i in range(2)]


def prompts() -> list[dict[str, str]]:
    rows = [{"prompt": f"ask w{i}"} for i in range(12)]
    rows[4]["prompt"] += f" {UNKNOWN}"
    rows += [{"prompt": f"ask w{i} {words(50)} {UNKNOWN}"} for i in range(2)]
    return rows + [{"prompt": f"held w{i}"} for i in range(3)]


def documents() -> list[str]:
    return [words(60)] * 20 + [words(300), "user : assistant : say tell long held ask same half"]


def written(folder: Path, name: str, rows: Sequence[Any], bad: Sequence[str] = ()) -> str:
    (folder / name).write_text("\n".join([*map(json.dumps, rows), *bad]) + "\n")
    return name


BAD = {"demonstrations": ["{broken", '{"nothing": 1}'], "rankings": ['{"prompt": "x", "number": 3}']}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("counts")
    held = [{"prompt": f"held w{i}"} for i in range(3)]
    (folder / "documents.txt").write_text("\n".join(documents()) + "\n")
    recipe: dict[str, Any] = {k: v for k, v in RECIPE.items() if k != "rankings"} | {
        "data": {
            "documents": "documents.txt",
            "demonstrations": written(folder, "demonstrations.jsonl", demonstrations(), BAD["demonstrations"]),
            "rankings": written(folder, "rankings.jsonl", rankings(), BAD["rankings"]),
            "prompts": written(folder, "prompts.jsonl", prompts()),
            "held_out": written(folder, "held.jsonl", held),
            "text_unit": "line",
        },
        "sft": {"epochs": 1, "learning_rate": 3e-3, "batch": 16, "max_tokens": LIMIT},
        "reward": {"epochs": 1, "learning_rate": 3e-3, "batch": BATCH, "micro_batch": 8, "calibration_samples": 8,
                   "max_tokens": LIMIT, "holdout": HOLDOUT, "ensemble": MEMBERS},
        "ppo": RECIPE["ppo"] | {"max_prompt_tokens": PROMPT_LIMIT},  # type: ignore[operator]
        "evaluation": {"prompts": 6, "bootstrap": 50},
    }  # fmt: skip
    (folder / "recipe.json").write_text(json.dumps(recipe))
    pipeline = Pipeline.from_recipe(folder / "recipe.json", run_dir=folder / "run")
    with pytest.MonkeyPatch.context() as patched:
        PHASES.clear()  # tests in another order make the run more than once
        patched.setattr(Bar, "phase", noted_phase)
        pipeline.run()
    return pipeline


PHASES: list[list[Any]] = []  # stage, name, total, and what was told of it


def noted_phase(bar: Bar, name: str, total: int) -> Callable[[int], None]:
    row: list[Any] = [bar.name, name, total, 0]
    PHASES.append(row)

    def done(count: int) -> None:
        row[3] += count

    return done


# -- the count, from the files -----------------------------------------------------------------------------------------


def lengths(prompt: str, answer: str) -> tuple[int, int]:
    """Tokens, one a word: "user : PROMPT assistant :" and "ANSWER <eos>"."""
    return 2 + len(prompt.split()) + 2, len(answer.split()) + 1


def fitted(prompt: str, answer: str) -> tuple[int, int]:
    """What is left within the limit: the prompt is cut first, to no less than eight tokens, then the answer."""
    query, response = lengths(prompt, answer)
    if query + response <= LIMIT:
        return query, response
    query = min(query, max(LIMIT - response, min(8, query)))
    return query, min(response, LIMIT - query)


def is_held(row: dict[str, str]) -> bool:
    return row["prompt"].startswith("held ")


def limit_for_95(totals: Sequence[int]) -> int | None:
    """The least total within which 95 % of the rows are whole, by trying each."""
    return next((t for t in sorted(totals) if sum(x <= t for x in totals) >= 0.95 * len(totals)), None)


def count(rows: Sequence[tuple[str, list[str]]], dropped: str = "") -> dict[str, Any]:
    """Counts of rows, each a prompt and its answers; ``dropped`` where equal answers are."""
    out: dict[str, Any] = {"rows": len(rows), "cut": 0, "cut_answers": 0, "cut_prompts": 0, "dropped": 0}
    totals, tokens, unknown = [], 0, 0
    for prompt, answers in rows:
        before, after = [lengths(prompt, a) for a in answers], [fitted(prompt, a) for a in answers]
        totals.append(max(map(sum, before)))
        kept = [tuple([*a.split(), "."][:n]) for a, (_, n) in zip(answers, after, strict=True)]
        if dropped and kept[0] == kept[1]:
            out["dropped"] += 1
            continue
        cut_prompt = any(b[0] > a[0] for b, a in zip(before, after, strict=True))
        cut_answer = any(b[1] > a[1] for b, a in zip(before, after, strict=True))
        out["cut_prompts"] += cut_prompt
        out["cut_answers"] += cut_answer
        out["cut"] += cut_prompt or cut_answer
        tokens += sum(map(sum, after))
        unknown += sum(f"{prompt} {a}".split().count(UNKNOWN) for a in answers)
    out |= {"tokens": tokens, "unknown_tokens": unknown} if unknown else {}
    out |= {"used": len(rows) - out["dropped"], "limit": LIMIT, "limit_for_95_percent": limit_for_95(totals)}
    return out | ({f"dropped: {dropped}": out["dropped"]} if out["dropped"] else {})


def ranked(kept: Sequence[dict[str, str]]) -> list[tuple[str, list[str]]]:
    return [(r["prompt"], [r["chosen"], r["rejected"]]) for r in kept]


def for_holdout(row: dict[str, str]) -> bool:
    """Whether a ranking is for the held-out reward model: its group's hash is below the share."""
    group = hashlib.sha256(row["prompt"].encode()).hexdigest()[:16]
    digest = hashlib.sha256(f"trivet/split/1/watcher/{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < HOLDOUT * 2**64


def ranking_tokens(rows: Sequence[dict[str, str]]) -> int:
    """Tokens of all answers with their prompts, those of dropped rankings left out."""
    total = 0
    for prompt, answers in ranked(rows):
        after = [fitted(prompt, a) for a in answers]
        kept = [a.split()[:n] for a, (_, n) in zip(answers, after, strict=True)]
        total += 0 if kept[0] == kept[1] else sum(map(sum, after))
    return total


EQUAL = "its responses are equal once cut"


def expected() -> dict[str, dict[str, Any]]:
    """Stage -> path of a claim -> its value."""
    train = [d for d in demonstrations() if not is_held(d)]
    sft = count([(d["prompt"], [d["completion"]]) for d in train])
    held_sft = count([(d["prompt"], [d["completion"]]) for d in demonstrations() if is_held(d)])
    mine = [r for r in rankings() if not is_held(r) and not for_holdout(r)]
    theirs = [r for r in rankings() if not is_held(r) and for_holdout(r)]
    assert len(theirs) > 1 and len(mine) > 1
    reward, holdout = count(ranked(mine), EQUAL), count(ranked(theirs), EQUAL)
    held_reward = count(ranked([r for r in rankings() if is_held(r)]), EQUAL)
    there = [p["prompt"] for p in prompts() if not is_held(p)]
    asked = [4 + len(prompt.split()) for prompt in there]
    fit = [prompt for prompt, n in zip(there, asked, strict=True) if n <= PROMPT_LIMIT]
    too_long = sum(n > PROMPT_LIMIT for n in asked)
    ppo = {"rows": len(asked), "used": len(asked) - too_long, "cut": 0, "cut_answers": 0, "cut_prompts": 0,
           "dropped": too_long, "limit": PROMPT_LIMIT, "limit_for_95_percent": limit_for_95(asked),
           "tokens": sum(n for n in asked if n <= PROMPT_LIMIT), "unknown_tokens": " ".join(fit).split().count(UNKNOWN),
           f"dropped: longer than {PROMPT_LIMIT} tokens": too_long}  # fmt: skip
    assert ppo["unknown_tokens"] == 1
    sizes = [len(d.split()) + 2 for d in documents()]
    pieces = [math.ceil((n - 1) / (CONTEXT - 1)) for n in sizes]
    pretrain = {"documents": len(sizes), "documents_in_several_chunks": sum(p > 1 for p in pieces),
                "chunks": sum(pieces), "tokens": sum(n - 1 for n in sizes)}  # fmt: skip
    vocabulary = len({w for d in documents() for w in d.split()}) + 4
    steps = MEMBERS * math.ceil(reward["used"] / BATCH) + math.ceil(holdout["used"] / BATCH)
    return {
        "pretrain": {
            **under("counts", pretrain | {"chunks_read": min(pretrain["chunks"], 12 * 8)}),
            **under("held_out_counts", dict.fromkeys(pretrain, 0)),
            "documents": len(sizes), "vocabulary": vocabulary, "skipped_steps": 0,
        },
        "sft": {
            **under("counts", of_one_source("demonstrations.jsonl", sft)),
            **under("held_out_counts", of_one_source("demonstrations.jsonl", held_sft)),
            "rows": sft["used"], "dropped": 0,
            "supervised_tokens": sum(fitted(d["prompt"], d["completion"])[1] for d in train),
            "steps": math.ceil(len(train) / 16), "skipped_steps": 0,
            **curve_of("sft", held_sft["used"], math.ceil(len(train) / 16)),
        },
        "reward": {
            **under("counts", of_one_source("rankings.jsonl", reward)),
            **under("held_out_counts", of_one_source("rankings.jsonl", held_reward)),
            **under("holdout_counts", of_one_source("rankings.jsonl", holdout)),
            "rankings": reward["used"], "dropped": reward["dropped"], "held_out_rankings": held_reward["used"],
            "held_out_examined": held_reward["used"],
            "pairs": held_reward["used"], "watcher/pairs": held_reward["used"], "watcher/rankings": holdout["used"],
            "steps": steps, "skipped_steps": 0,
            **curve_of("reward", held_reward["used"], math.ceil(reward["used"] / BATCH)),
            **curve_of("reward_1", held_reward["used"], math.ceil(reward["used"] / BATCH)),
            **curve_of("watcher", held_reward["used"], math.ceil(holdout["used"] / BATCH)),
        },
        "ppo": {
            **under("counts", of_one_source("prompts.jsonl", ppo)),
            "prompts": ppo["used"], "prompts_left_out": too_long, "updates": 2,
            "kept_update": 2, "skipped_steps": 0,
        },
    }  # fmt: skip


def curve_of(role: str, held_out: int, steps: int) -> dict[str, int]:
    """Of a held-out curve: all rows, fewer than 32, from before the first step to the last."""
    found = {"rows": held_out, "of": held_out, "kept_step": steps, "before/step": 0, "evaluations//step": steps}
    return under(f"held_out_curves/{role}", found)


def of_one_source(name: str, counts: dict[str, Any]) -> dict[str, Any]:
    """With what the only source lost, said where it lost anything."""
    if not counts["cut"] + counts["dropped"]:
        return counts
    return counts | {f"by_source/{name}/{key}": counts[key] for key in ("rows", "cut", "dropped")}


def under(group: str, counts: dict[str, Any]) -> dict[str, Any]:
    return {f"{group}/{name}": n for name, n in counts.items()}


def evaluation(run: Path) -> dict[str, Any]:
    """The same of evaluation, from the answers that it wrote."""
    rows = [json.loads(line) for line in (run / "evaluation" / "samples.jsonl").read_text().splitlines()]
    cells = [cell for row in rows for cell in row["systems"].values()]
    asked = len({row["prompt"] for row in rows})
    counts = {"prompts": 3, "longer_than_positions": 0, "answers": len(cells), "limit": 12,
              "unfinished": sum(not cell["finished"] for cell in cells)}  # fmt: skip
    assert asked == 3 and counts["unfinished"]
    return {**under("counts", counts), "prompts": asked}


# -- the claims --------------------------------------------------------------------------------------------------------


def numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a manifest's metrics by its path, those of warnings' texts apart."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, f"{path}/{key}" if path else key)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers(inner, f"{path}/")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value


def wanted(made: Pipeline) -> dict[str, dict[str, Any]]:
    found = expected() | {"evaluation": evaluation(made.run_dir)}
    weights = made.run_dir / "pretrain" / "model" / "model.safetensors"
    with safe_open(weights, "pt") as file:
        found["pretrain"]["parameters"] = sum(math.prod(file.get_slice(n).get_shape()) for n in file.keys())  # noqa: SIM118
    return found


def manifest_metrics(made: Pipeline, stage: str) -> dict[str, Any]:
    return json.loads((made.run_dir / stage / "manifest.json").read_text())["metrics"]


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "ppo", "evaluation"])
def test_every_number_of_the_manifest_is_as_counted(made: Pipeline, stage: str) -> None:
    claimed = {p: n for p, n in numbers(manifest_metrics(made, stage)) if p != "warnings//step"}
    counted = wanted(made)[stage]
    assert {p: claimed.get(p) for p in counted} == counted
    left = [p for p in claimed if p not in counted and not MEASURED.search(p)]
    assert not left, f"nobody counts {left}"


def metrics_rows(made: Pipeline, stage: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (made.run_dir / stage / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "ppo", "evaluation"])
def test_the_counts_stand_once_in_the_metrics(made: Pipeline, stage: str) -> None:
    first, *rest = metrics_rows(made, stage)
    claimed = {k: v for k, v in first.items() if k.startswith("data/")}
    assert claimed and not [k for row in rest for k in row if k.startswith("data/")]
    counted = {}
    for path, value in wanted(made)[stage].items():
        group, _, name = path.partition("/")
        if group in GROUPS and ":" not in name and not name.startswith("by_source/"):
            counted["/".join(filter(None, ("data", GROUPS[group], name)))] = value
    assert claimed == counted


def test_tokens_and_steps_of_the_metrics_are_as_counted(made: Pipeline) -> None:
    train = [d for d in demonstrations() if not is_held(d)]
    sft, reward, ppo = (metrics_rows(made, s) for s in ("sft", "reward", "ppo"))
    assert sft[-1]["num_tokens"] == sum(sum(fitted(d["prompt"], d["completion"])) for d in train)
    mine = [r for r in rankings() if not is_held(r) and not for_holdout(r)]
    theirs = [r for r in rankings() if not is_held(r) and for_holdout(r)]
    assert sum(r["tokens"] for r in reward) == MEMBERS * ranking_tokens(mine) + ranking_tokens(theirs)
    for stage, rows in (("sft", sft), ("reward", reward)):
        assert [r["step"] for r in rows] == list(range(1, wanted(made)[stage]["steps"] + 1))
    for row in ppo:
        assert row["tokens/response"] == row["rollout/length"] * 8
        assert (row["rollout/truncated_fraction"] * 8).is_integer()
    sizes = [len(d.split()) + 2 for d in documents()]
    assert [r["step"] for r in metrics_rows(made, "pretrain")] == list(range(1, 13))
    assert all(0 < r["tokens"] <= 8 * max(min(n, CONTEXT) - 1 for n in sizes) for r in metrics_rows(made, "pretrain"))


def test_the_plan_counts_the_same(made: Pipeline) -> None:
    planned = {p.name: p.details for p in made.plan()}
    for stage in ("pretrain", "sft", "reward", "ppo"):
        counted = wanted(made)[stage]
        groups = {g: planned[stage][g] for g in GROUPS if g in planned[stage]}
        assert dict(numbers(groups)) == {p: n for p, n in counted.items() if p.partition("/")[0] in GROUPS}
        assert not planned[stage]["sampled"]
    dropped = wanted(made)["reward"]
    batches = math.ceil(dropped["counts/rows"] / BATCH), math.ceil(dropped["holdout_counts/rows"] / BATCH)
    assert planned["reward"]["steps"] == MEMBERS * batches[0] + batches[1]
    from pipelines.run.plan_details import rejected_warning

    read = len(demonstrations()) + len(BAD["demonstrations"])
    assert f"2 of {read} rows of data.demonstrations were rejected (5%)" not in rejected_warning(made.corpus)
    assert made.corpus.read["demonstrations"][0] == read and len(made.corpus.read["demonstrations"][1]) == 2
    assert made.corpus.read["rankings"][0] == len(rankings()) + 1 and made.corpus.read["prompts"][0] == len(prompts())


def test_every_number_of_the_report_is_as_counted(made: Pipeline) -> None:
    told = dict(facts(read_run(made.run_dir)))
    data = {"demonstrations train": 35, "demonstrations held out": 3, "rankings train": 30, "rankings held out": 2,
            "prompts train": 14, "prompts held out": 3, "documents train": 22, "rejected rows": 3}  # fmt: skip
    assert told.pop("Data") == {name: str(n) for name, n in data.items()}
    assert data["rejected rows"] == sum(map(len, BAD.values()))
    held = {row["prompt"] for row in demonstrations() if is_held(row)}
    sources = {
        "documents.txt (documents)": (22, 0, 0),
        "demonstrations.jsonl (demonstrations)": (len(demonstrations()), 2, sum(map(is_held, demonstrations()))),
        "rankings.jsonl (rankings)": (len(rankings()), 1, sum(map(is_held, rankings()))),
        "prompts.jsonl (prompts)": (len(prompts()), 0, sum(is_held(row) for row in prompts())),
        "held.jsonl (held_out)": (len(held), 0, len(held)),
    }
    for name, (used, rejected, kept) in sources.items():
        expected = {"read": used + rejected, "rejected": rejected, "used": used, "held out": kept}
        assert told.pop(f"Source: {name}") == {what: str(n) for what, n in expected.items() if n}
    roles = {
        "demonstrations": f"assistant: {len(demonstrations())}, user: {len(demonstrations())}",
        "rankings": f"assistant: {2 * len(rankings())}, user: {len(rankings())}",
        "prompts": f"user: {len(prompts())}",
    }
    for part, by_role in roles.items():
        rows = told.pop(f"Data: {part}")
        assert rows["roles"] == by_role and rows["scripts"] == f"Latin: {by_role.rpartition(' ')[2]}"
    assert told.pop("Data: documents")["duplicate rows"] == "19"
    assert "19 rows are one before again" in told.pop("Data: doubtful")["duplicates"]
    counted = wanted(made)
    titles = {"pretrain": "Pretraining", "sft": "Instruction tuning (SFT)", "reward": "Reward model: counts",
              "ppo": "PPO", "evaluation": "Evaluation: counts"}  # fmt: skip
    assert set(titles.values()) == set(told)
    page = Tags(write_report(made.run_dir).read_text()).text
    for stage, title in titles.items():
        rows = {}
        for path, n in counted[stage].items():
            group, _, name = path.partition("/")
            part = GROUPS.get(group, "").replace("_", " ")
            label = (f"{part}: {name}" if part else name) if group in GROUPS else path
            rows[label.replace("_", " ")] = f"{n:,}"
        assert {name: told[title][name] for name in rows if name in told[title]} == {
            name: n for name, n in rows.items() if name in told[title]
        }
        missing = [p for p in counted[stage] if p.partition("/")[0] in GROUPS and "/by_source/" not in p]
        assert all(len(told[title]) >= len(missing) and p.partition("/")[2] for p in missing)
        left = [n for n in told[title] if n not in rows and not MEASURED.search(n.replace(" ", "_"))]
        assert not left, f"nobody counts {left}"
        for name in told[title]:
            assert name in page


def test_every_phase_of_a_stage_is_told_to_its_end(made: Pipeline) -> None:
    """What a stage does beside its steps has a total, and as much is told of it."""
    assert all(total == told for _, _, total, told in PHASES)
    names = {(stage, name) for stage, name, _, _ in PHASES}
    assert names >= {
        ("sft", "held-out demonstrations"),
        ("reward", "held-out rankings"),
        ("reward", "damaged responses"),
    }
    assert names >= {("evaluate", "choice of best_of_4")}
    watching = (
        "responses for the held-out reward model",
        "KL of the policy that is evaluated",
        "scores of the reward model",
    )
    assert names >= {("ppo", name) for name in (*watching, "scores of the held-out reward model")}
    assert names >= {("evaluate", f"responses of {s}") for s in ("base", "sft", "best_of_4", "ppo")}
    held_out = wanted(made)["reward"]["held_out_counts/used"]
    totals = [total for stage, name, total, _ in PHASES if (stage, name) == ("reward", "held-out rankings")]
    assert totals == [2 * held_out * MEMBERS, 2 * held_out]  # the reward models' once each, and the held-out one's


def test_the_plans_own_rows_and_steps_are_as_counted(made: Pipeline) -> None:
    planned = {p.name: p.details for p in made.plan()}
    of = {name: sum(not is_held(row) for row in rows) for name, rows in
          (("demonstrations", demonstrations()), ("rankings", rankings()), ("prompts", prompts()))}  # fmt: skip
    of["documents"] = len(documents())
    parts = {"pretrain": ["documents"], "sft": ["demonstrations"], "reward": ["rankings", "prompts"],
             "ppo": ["prompts"]}  # fmt: skip
    for stage, names in parts.items():
        assert planned[stage]["rows"] == {name: of[name] for name in names}
    held = {
        "prompts": 3,
        "demonstrations": sum(map(is_held, demonstrations())),
        "rankings": sum(map(is_held, rankings())),
    }
    assert planned["evaluate"]["rows"] == held
    systems = 4 + 3  # sampled, and greedy but for best-of-n
    counted = {"pretrain": 12, "sft": math.ceil(of["demonstrations"] / 16), "ppo": 2, "evaluate": systems}
    assert {stage: planned[stage]["steps"] for stage in counted} == counted
    assert len(metrics_rows(made, "sft")) == counted["sft"]


def test_every_number_of_the_results_is_as_counted(made: Pipeline) -> None:
    """Means, shares and comparisons from the answers' file; what only a resampling or a model can say is left."""
    results = json.loads((made.run_dir / "evaluation" / "results.json").read_text())
    cells, asked = cells_of(made.run_dir), 3
    assert results["prompts"] == asked
    measured = re.compile(r"ci95|length/|distinct|_per_token|minimum_detectable|needed|length_controlled|p_value_holm")
    for decoding, key in (("sampled", "systems"), ("greedy", "greedy")):
        assert list(results[key]) == list(cells[decoding])
        for name, answers in cells[decoding].items():
            assert_as_counted(results[key][name], described(answers), measured)
            words, room = [len(c["response"].split()) + c["finished"] for c in answers], 12
            length = results[key][name]["length"]["mean"]
            assert sum(n if c["finished"] else room for n, c in zip(words, answers, strict=True)) <= length * asked
            assert length <= room and (length * asked) == pytest.approx(round(length * asked))
            for kl in ("kl", "kl_exact"):
                if f"{kl}_per_token" in results[key][name]:
                    whole = sum(c[kl] for c in answers)
                    assert results[key][name][f"{kl}_per_token"] == pytest.approx(whole / (length * asked))
    for found in results["comparisons"]:
        of = cells[found["decoding"]]
        assert_as_counted(found, compared(of[found["a"]], of[found["b"]], found["by"]), measured)
    for found in results["metric_comparisons"]:
        of = cells[found["decoding"]]
        metric = [[c["metrics"][found["metric"]] for c in of[found[side]]] for side in "ab"]
        gaps = [x - y for x, y in zip(*metric, strict=True)]
        assert found["n"] == asked and found["difference"]["mean"] == pytest.approx(sum(gaps) / asked)
    shown = [w for w in results["warnings"] if "were cut off" in w]
    counted = []
    for decoding, where in (("sampled", ""), ("greedy", " (greedy)")):
        for name, answers in cells[decoding].items():
            share = described(answers)["truncated"]
            if share > 0.2:
                counted.append(f"{name}{where}: {share:.0%} of the responses were cut off at the length limit.")
    assert sorted(shown) == sorted(counted)
    settings = {k: v for k, v in results["settings"].items() if isinstance(v, int | float)}
    assert settings == {"seed": 0, "temperature": 1.0, "max_new_tokens": 12, "samples_per_prompt": 1}
    page = Tags(write_report(made.run_dir).read_text()).text
    assert all(text in page for text in shown)


def assert_as_counted(claimed: dict[str, Any], counted: dict[str, float], measured: re.Pattern[str]) -> None:
    found = dict(numbers(claimed))
    assert {p: found.get(p) for p in counted} == pytest.approx(counted, abs=1e-6)
    left = [p for p in found if p not in counted and not measured.search(p)]
    assert not left, f"nobody counts {left}"


def test_every_number_of_a_data_check_is_as_counted(made: Pipeline) -> None:
    from data.checks import check_files

    folder = made.run_dir.parent
    sft, ranked_file = (folder / f"{name}.jsonl" for name in ("demonstrations", "rankings"))
    found = check_files([sft, ranked_file])
    extra = [{"prompt": "x"}]  # a ranking whose answers are unusable is a prompt still
    for one, rows, bad, answers in (
        (found.files[0], demonstrations(), len(BAD["demonstrations"]), ("completion",)),
        (found.files[1], rankings(), 0, ("chosen", "rejected")),
    ):
        counted = checked(rows, bad, answers)
        claimed = dict(numbers(json.loads(json.dumps(asdict(one))))) | {"bad": len(one.bad)}
        if one.file == str(ranked_file):
            both = sorted(len(r["prompt"]) for r in [*rows, *extra])
            counted["unread/number"] = len(extra)  # its chosen text is no answer
            counted |= {"rows": len(both), "characters/prompt/count": len(both),
                        "characters/prompt/mean": sum(both) / len(both),
                        "characters/prompt/median": both[len(both) // 2]}  # fmt: skip
        prompts = counted["characters/prompt/count"]
        texts = sum(len([r[name] for name in answers]) for r in rows)
        counted |= {"duplicate_rows": 0, "roles/user": prompts, "roles/assistant": texts, "turns/2": len(rows)}
        counted |= {"scripts/Latin": prompts} | ({"turns/1": prompts - len(rows)} if prompts > len(rows) else {})
        known = {p: claimed.get(p) for p in counted}
        assert known == pytest.approx(counted)
        # a model guesses languages, and near duplicates have tests of their own
        others = r"formats/|columns/|usable/|languages/|findings/"
        left = [p for p in claimed if p not in counted and not re.match(others, p)]
        assert not left, f"nobody counts {left}"
    assert found.files[0].usable["demonstrations"] == found.files[0].columns["prompt"] == len(demonstrations())
    assert found.files[1].usable["rankings"] == found.files[1].columns["rejected"] == len(rankings())
    shared = {r["prompt"] for r in demonstrations()} & {r["prompt"] for r in rankings()}
    assert [o.shared for o in found.overlaps] == [len(shared)] and not found.clean


def trained_on() -> dict[str, set[str]]:
    """Stage -> the prompts that it, and the stages that it starts from, have in their training data."""
    sft, reward, ppo = (
        {r["prompt"] for r in rows if not is_held(r)} for rows in (demonstrations(), rankings(), prompts())
    )
    return {"sft": sft, "reward": sft | reward, "ppo": sft | reward | ppo}


def counts_of(made: Pipeline, kind: str, name: str, document: Any) -> dict[str, Any]:
    """What this file counts of a document, by the path of the claim."""
    folder = (made.run_dir / name).parent
    if kind == "manifest.json":
        seen = trained_on().get(document["stage"])
        return sizes_of(folder, document) | ({} if seen is None else {"lineage/prompts": len(seen)})
    if kind == "metrics.jsonl":
        return {"skipped_steps": 0} if "skipped_steps" in document else {}
    held = [r for r in rankings() if is_held(r)]
    if kind == "report_card.json":
        unlike = sum(fitted(r["prompt"], r["chosen"])[1] != fitted(r["prompt"], r["rejected"])[1] for r in held)
        probes = {name: probe["n"] for name, probe in document["probes"].items()}
        assert all(0 < n <= len(held) for n in probes.values())
        return carded(len(held), 8, unlike, probes)
    if kind == "results.json":
        judges = {judge: found["adversaries"] for judge, found in document["judges"].items()}
        assert {*judges} == {"held_out_reward", "reward"}
        deceiving = {f"judges/{judge}/adversaries/{name}/n": 3 for judge, names in judges.items() for name in names}
        return deceiving | {f"judges/{judge}/accuracy/n": len(held) for judge in judges}
    train = {"documents": len(documents()), "demonstrations": 35, "rankings": 30, "prompts": 14}
    kept = {"demonstrations": 3, "rankings": len(held), "prompts": 3}
    out = {f"data/{part} train": n for part, n in train.items()} | {f"data/{p} held_out": n for p, n in kept.items()}
    tokens = {s: sum(int(row.get("tokens", 0)) for row in metrics_rows(made, s)) for s in ("pretrain", "reward")}
    tokens["sft"] = int(metrics_rows(made, "sft")[-1]["num_tokens"])
    tokens["ppo"] = int(sum(row["tokens/response"] for row in metrics_rows(made, "ppo")))
    results = json.loads((made.run_dir / "evaluation" / "results.json").read_text())
    systems = [*results["systems"].values(), *results["greedy"].values()]
    tokens["evaluate"] = sum(round(s["length"]["mean"] * s["n"]) for s in systems)
    return out | {"data/rejected rows": 3} | {f"stages/{stage}/tokens": n for stage, n in tokens.items()}


def test_every_number_of_every_document_is_counted_or_listed_as_no_count(made: Pipeline) -> None:
    """A new number in a manifest, the metrics, the card, the results or ``run.json`` needs a count, or a reason."""
    seen = set()
    for kind, name, document in documents_of(made.run_dir):
        claimed, counted = dict(numbers(document)), counts_of(made, kind, name, document)
        assert {path: claimed.get(path) for path in counted} == counted, name
        left = [p for p in claimed if p not in counted and not uncounted(kind, p)]
        assert not left, f"{name}: nobody counts {left}"
        seen.add(kind)
    assert seen == {"manifest.json", "metrics.jsonl", "report_card.json", "results.json", "run.json"}


def test_every_number_of_the_plan_is_counted_or_listed(made: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    from pipelines.cli.main import main

    assert main(["plan", str(made.run_dir.parent / "recipe.json"), "--run-dir", str(made.run_dir), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [p for p, _ in numbers(document) if not uncounted("plan", p)] == []
    assert {stage["status"] for stage in document["stages"]} == {"cached"}


def test_facts_of_the_data_in_run_json_are_as_counted(made: Pipeline) -> None:
    facts = json.loads((made.run_dir / "run.json").read_text())["data_check"]["facts"]
    parts = {"demonstrations": demonstrations(), "rankings": rankings(), "prompts": prompts()}
    assert facts["shared"] == shared_prompts(parts)
    for part, answers in (("demonstrations", ("completion",)), ("rankings", ("chosen", "rejected")), ("prompts", ())):
        counted = checked(parts[part], 0, answers) if answers else {}
        if not answers:
            sizes = sorted(len(row["prompt"]) for row in parts[part])
            counted = {"characters/prompt/count": len(sizes), "characters/prompt/longest": sizes[-1],
                       "characters/prompt/mean": sum(sizes) / len(sizes)}  # fmt: skip
        claimed = dict(numbers(facts[part]))
        known = {path: n for path, n in counted.items() if path.startswith(("characters/", "answers/"))}
        assert known and {path: claimed.get(path) for path in known} == pytest.approx(known, abs=0.05)  # one place
    assert dict(numbers(facts["documents"]))["duplicate rows"] == 19


def test_comparisons_with_baselines_add_up(made: Pipeline) -> None:
    results = json.loads((made.run_dir / "evaluation" / "results.json").read_text())
    assert results["baseline_comparisons"]
    for row in results["baseline_comparisons"]:
        assert row["wins"] + row["ties"] + row["losses"] == row["n"] == 3
        assert row["win_rate"] == pytest.approx((row["wins"] + row["ties"] / 2) / 3)
    card = json.loads((made.run_dir / "reward" / "report_card.json").read_text())
    assert results["reward_card"]["pair_accuracy"] == card["accuracy"]["share"]
    for when in ("before", "after"):
        bins = card["calibration"][when]["bins"]
        assert sum(b["n"] for b in bins) == card["accuracy"]["n"]
        assert sum(b["n"] * b["right"] for b in bins) == pytest.approx(
            card["accuracy"]["share"] * card["accuracy"]["n"]
        )
