"""Every command of README and docs is run as it is written, or is listed with a reason why not."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from models.roles.gguf_file import write_gguf
from pipelines.run.pipeline import Pipeline
from pipelines.workspace.store import Store
from tests.docs.commands import PAGES, ROOT, all_commands, commands_of, help_examples, served, shell
from tests.docs.table import ASK, FIRST, NEED_PACKAGES, NOT_RUN, QUICK, SERVED, SLOW, reason_of
from tests.support.classifiers import save_classifier
from tests.support.gguf import byte_tokenizer, sized
from tests.support.recipes import RECIPE


def test_commands_are_found_in_blocks_and_in_running_text() -> None:
    text = "Do `trivet plan\nx.yaml`, `make` or:\n\n    trivet ls; trivet gc   # both\n\n```sh\n$ pip install y\n```\n"
    assert [(c.line, c.text) for c in commands_of(text)] == [
        (4, "trivet ls"), (4, "trivet gc"), (7, "pip install y"), (1, "trivet plan x.yaml"),
    ]  # fmt: skip


def test_the_examples_of_every_help_are_found() -> None:
    found = {c.text for c in help_examples()}
    assert {"trivet ls ~/trivet-store", "trivet data fix chats.parquet", "trivet plan my.yaml --settings"} <= found
    assert all(c.startswith("trivet ") for c in found) and len(found) > 40


WRITTEN = sorted({c.text for c in all_commands()})
RUN = (FIRST, *QUICK, *SLOW, *SERVED, *ASK, *NEED_PACKAGES)
NAMES = [c for c in WRITTEN if len(c.split()) < 4 and any(other.startswith(f"{c} ") for other in WRITTEN)]
"""Commands that running text calls by name, without arguments, such as `trivet data check`."""


@pytest.mark.parametrize("command", [c for c in WRITTEN if c not in NAMES])
def test_every_command_is_classified(command: str) -> None:
    assert command in RUN or reason_of(command), (
        f"{command}: add it to tests/docs/table.py, to be run or with the reason why it cannot be"
    )


def test_the_table_holds_nothing_that_is_not_written() -> None:
    assert not {*RUN} - {*WRITTEN}
    assert not [start for start in NOT_RUN if not any(c.startswith(start) for c in WRITTEN)]
    assert len(RUN) == len({*RUN}) and not [c for c in RUN if reason_of(c)]


@pytest.mark.parametrize("why", sorted({*NOT_RUN.values()}))
def test_a_reason_names_a_test_that_is_there(why: str) -> None:
    tests, targets = re.findall(r"tests/[\w/]+\.py", why), re.findall(r"`make ([\w-]+)`", why)
    assert tests or targets, f"{why!r} names no test"
    assert not [name for name in tests if not (ROOT / name).is_file()]
    made = re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text())
    assert not {*targets} - {*made}


@pytest.mark.parametrize("command", [c for c in WRITTEN if c.startswith("make ")])
def test_make_knows_what_the_pages_ask_of_it(command: str) -> None:
    done = subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout, done.stderr


def test_the_extras_that_pages_install_are_there() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    extras = {name for found in re.findall(r"trivet\[([\w,-]+)\]", text) for name in found.split(",")}
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras >= {"clean", "lm-eval", "metrics", "nf4"} and not extras - {*declared}


@pytest.mark.parametrize("command", [c for c in WRITTEN if c.startswith("python benchmarks/")])
def test_a_benchmark_takes_the_options_that_pages_give_it(command: str) -> None:
    _, file, *words = shlex.split(command)
    code = (ROOT / file).read_text() + (ROOT / "benchmarks/pairs.py").read_text()  # which has what many share
    assert not [word for word in words if word.startswith("--") and f'"{word}"' not in code]


def lines(path: Path, *rows: dict) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a reader who has done the first run: recipe, data, and copies of that run by other names."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "bin").mkdir()
    trivet = folder / "bin" / "trivet"
    trivet.write_text(f'#!/bin/sh\nexec {sys.executable} -m pipelines "$@"\n')
    trivet.chmod(0o755)
    recipe = RECIPE | {"name": "mine", "runtime": {"threads": 1}}
    recipe["reward"] = RECIPE["reward"] | {"gate": False}  # type: ignore[operator]
    for name in ("mine", "my"):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe | {"name": name}))
    lines(folder / "instructions.jsonl", {"prompt": "w1", "completion": "w2"}, {"prompt": "w3", "completion": "w4"})
    lines(
        folder / "chats.jsonl",
        {"prompt": "mail a@b.org", "completion": "<p>w2</p>"},
        {"prompt": "w3", "completion": "w4"},
    )
    lines(folder / "rankings.jsonl", {"prompt": "w1", "responses": ["w2", "w3"]})
    published = [
        {"id": f"{kind}{n}", "prompt": f"w{n}", "chosen": ["w1 w2"], "rejected": ["w3", "w4", "w5"], "subset": subset}
        for kind, subset in (("", "Math"), ("tied:", "Ties"), ("ref:", "Ties"))
        for n in range(1, 4)
    ]
    table = pa.Table.from_pylist([row | {"num_correct": 1} for row in published])
    pq.write_table(table, folder / "reward-bench-2.parquet")
    lines(folder / "prompts.jsonl", {"prompt": "write a poem"}, {"prompt": "tell a story"})
    lines(folder / "answers.jsonl", {"prompt": "w1", "response": "w2 w3"}, {"prompt": "w4", "response": "w5"})
    asked = [row.messages[-1].content for row in Pipeline.from_recipe(RECIPE).corpus.prompts.held_out[:2]]
    for name in ("new", "other_prompts"):  # the gold of the demo's task knows no other requests
        lines(folder / f"{name}.jsonl", *({"prompt": prompt} for prompt in asked))
    for name, completions in (("labelled", ("yes", "no")), ("answered", ("one two three", "four five"))):
        rows = zip(asked, completions, strict=True)
        lines(folder / f"{name}.jsonl", *({"prompt": prompt, "completion": said} for prompt, said in rows))
    lines(folder / "train.jsonl", {"question": "w1", "completion": "w2", "meta_id": 1})
    lines(folder / "held_out.jsonl", {"prompt": "w3", "completion": "w4"})
    pq.write_table(pa.table({"prompt": ["w1", "w3"], "completion": ["w2", "w4"]}), folder / "chats.parquet")
    (folder / "lines.txt").write_text("".join(f"w{i} w{i + 1} w{i + 2}\n" for i in range(30)))
    (folder / "table.tsv").write_text("".join(f"w{i} w{i} w1\tw{i} w{i} w2\n" for i in range(30)))
    (folder / "answers.csv").write_text("prompt,reply\nw1,w2 w3\nw4,w5\n")
    (folder / "my.py").write_text("def kindness(completions, **kwargs):\n    return [len(c) for c in completions]\n")
    shutil.copy(folder / "my.py", folder / "my_rewards.py")
    (folder / "my_metrics.py").write_text(
        "def rhymes(prompts, completions, references):\n    return [float(c.endswith('ing')) for c in completions]\n"
    )
    (folder / "metrics/mine").mkdir(parents=True)
    (folder / "metrics/mine/mine.py").write_text(METRIC)
    save_classifier(folder / "classifier", ("kind", "cruel"))
    shutil.copytree(ROOT / "examples", folder / "examples")
    (folder / "store").mkdir()
    done = shell(FIRST, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("demo", "other", "less-kl"):
        shutil.copytree(folder / "runs/mine", folder / "runs" / name)
    for name in ("adapters/sft", "my_peft_adapter", "path/to/peft_folder"):
        shutil.copytree(folder / "runs/mine/sft", folder / name)
    shutil.copytree(folder / "runs/mine/pretrain", folder / "runs/slower/pretrain")
    for name in ("my-base", "my-model"):
        shutil.copytree(folder / "runs/mine/pretrain/model", folder / name)
    data = {name: source for name, source in RECIPE["data"].items() if name != "documents"}  # type: ignore[attr-defined]
    served = RECIPE | {"base": "./my-base", "template": "dialogue", "data": data}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(served))
    return folder


@pytest.fixture(scope="module")
def exports(world: Path) -> Path:
    """What the reader has exported: a reward model, an adapter, and merged policies."""
    made = world.parent / f"{world.name}-exports"
    for options in (
        "--stage reward --to {}/reward",
        "--stage ppo --to {}/adapter",
        "--stage ppo --merge --to {}/merged",
    ):
        done = shell(f"trivet export runs/mine {options.format(made)}", world)
        assert done.returncode == 0, done.stderr[-3000:]
    return made


EXPORTED = {
    "trivet score rewarder": ("reward", "rewarder"),
    "trivet score ./some-reward-model": ("reward", "some-reward-model"),
    "trivet chat my-adapter": ("adapter", "my-adapter"),
    "path:exports/mine": ("merged", "exports/mine"),
    "path:exports/other": ("merged", "exports/other"),
    "path:other_model": ("merged", "other_model"),
}
"""What a command names -> which export it is, and where it lies."""
METRIC = """
import datasets
import evaluate


class Mine(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions):
        return {"share": sum(p.isupper() for p in predictions) / len(predictions)}
"""
SLOW_ONES = [pytest.param(c, marks=pytest.mark.slow) for c in (*SLOW, *ASK)]
WITH_PACKAGES = [
    pytest.param(
        command,
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(None in map(find_spec, names), reason="needs the packages of the extra 'metrics'"),
        ],
    )
    for command, names in NEED_PACKAGES.items()
]


@pytest.fixture(scope="module")
def of_bytes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first run, with a byte-level tokenizer."""
    folder, bpe = tmp_path_factory.mktemp("bytes") / "run", "base.pretrain.tokenizer=bpe"
    Pipeline.from_recipe(RECIPE, [bpe, "base.pretrain.vocabulary=400"], folder).run(until="ppo")
    return folder


@contextmanager
def scorer(command: str, folder: Path) -> Iterator[None]:
    """The server of the page's line before, for a command that asks it."""
    if command not in ASK:
        yield
        return
    free_or_skip(8791)
    with served("trivet serve-reward data.demo.task:gold", folder) as address:
        assert address == "http://127.0.0.1:8791/"
        yield


def free_or_skip(port: int) -> None:
    """Skips where somebody else listens at the port that a page names."""
    with socket.socket() as other:
        if other.connect_ex(("127.0.0.1", port)) == 0:
            pytest.skip(f"port {port} of this machine is taken")


@pytest.mark.parametrize("command", [*QUICK, *SLOW_ONES, *WITH_PACKAGES])
def test_the_command_runs_as_it_is_written(
    command: str, world: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path / "reader"
    shutil.copytree(world, folder)
    for word, (kind, place) in EXPORTED.items():
        if word in command:
            shutil.copytree(request.getfixturevalue("exports") / kind, folder / place)
    if command.startswith("trivet init"):  # a reader who has no recipe yet, and enough rows to hold some out
        (folder / "mine.yaml").unlink()
        known = json.loads((folder / "my-base" / "tokenizer.json").read_text())["model"]["vocab"]
        words = [word for word in known if word.isalpha()][:32]  # of others there is nothing to rank
        rows = [(f"{words[i]} {words[i + 1]}", words[i + 2]) for i in range(30)]
        lines(folder / "instructions.jsonl", *({"prompt": asked, "completion": said} for asked, said in rows))
        lines(folder / "rankings.jsonl", *({"prompt": asked, "responses": [said, words[0]]} for asked, said in rows))
        lines(folder / "prompts.jsonl", *({"prompt": asked} for asked, _ in rows))
    if command.startswith(("torchrun", "accelerate")):
        shutil.rmtree(folder / "runs/mine")
    if "--gguf" in command:  # llama.cpp has no vocabularies of whole words
        for name in ("mine", "demo"):
            shutil.rmtree(folder / "runs" / name)
            shutil.copytree(request.getfixturevalue("of_bytes"), folder / "runs" / name)
    if command.startswith("trivet import"):
        tokenizer = byte_tokenizer()
        lm, file = sized("llama", tokenizer), folder / command.split()[2]
        write_gguf(lm, tokenizer, file, kind="q8_0", name="tiny", stops=[0])
    if "my.yaml" in command and "--store" not in command:  # the reader has run it before
        shutil.copytree(folder / "runs/mine", folder / "runs/my")
    if "~/trivet-store" in command and "my.yaml" not in command:
        Store(folder / "trivet-store")
    if "8791" in command and "score" in command:  # the requests that the served gold knows
        shutil.copy(folder / "answered.jsonl", folder / "answers.jsonl")
    if "ppo.reward=" in command:  # nothing would read what it says of the gate
        recipe = yaml.safe_load((folder / "mine.yaml").read_text())
        del recipe["reward"]["gate"]
        (folder / "mine.yaml").write_text(yaml.safe_dump(recipe))
    with scorer(command, folder):
        done = shell(command, folder)
    assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr
    if command.startswith("torchrun"):
        made = json.loads((folder / "runs/mine/ppo/manifest.json").read_text())
        assert made["made_with"]["processes"] == 2 and made["described"]["runtime"]["device"] == "cpu"


@pytest.mark.slow
@pytest.mark.parametrize("command", SERVED)
def test_the_server_answers_and_ends_at_ctrl_c(command: str, world: Path) -> None:
    if "serve-reward" in command and "--port" not in command:
        free_or_skip(8791)
    prompt = json.loads((world / "new.jsonl").read_text().splitlines()[0])["prompt"]
    body = json.dumps({"rows": [{"prompt": prompt, "completion": "hello to you"}]}).encode()
    if command.startswith("trivet serve ") and "--port" not in command:
        free_or_skip(8790)
    with served(command, world) as address:
        if command.startswith("trivet serve "):
            with urllib.request.urlopen(f"{address}v1/models", timeout=60) as answer:
                names = [model["id"] for model in json.load(answer)["data"]]
            assert names == (["ppo"] if "--stage" in command else ["base", "sft", "ppo"])
            return
        asked = urllib.request.Request(address, None if SERVED[command] else body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=60) as answer:
            said = answer.read().decode()
    if SERVED[command]:
        assert f"<title>{SERVED[command]}" in said
    else:
        assert [math.isfinite(score) for score in json.loads(said)["scores"]] == [True]
