"""The files of examples/launch are run as they stand, with stand-ins for the cluster's programs.

What they start is written down instead; every trivet command among it is parsed by the real parser, and its settings by
the real recipe.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from pipelines.cli.exit_codes import spread_values
from pipelines.cli.main import app
from pipelines.cli.rollout_server import command_line
from pipelines.loading.load import load_recipe
from tests.conftest import tiny_lm, word_tokenizer
from tests.docs.commands import ROOT
from tests.support.recipes import RECIPE

LAUNCH = ROOT / "examples" / "launch"
COMMANDS: Any = typer.main.get_command(app)

STAND_IN = """#!{python}
import json, os, sys, time
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
with open(os.environ["STARTED"], "a") as file:
    file.write(json.dumps([name, *words]) + "\\n")
if name == "scontrol":
    print("n1\\nn2\\nn3\\nn4")
elif name == "srun":  # its options are of one word
    while words[0].startswith("--"):
        words.pop(0)
    os.execvp(words[0], words)
elif name == "torchrun":
    words = words[words.index("--no-python") + 1 :]
    os.execvp(words[0], words)
elif name == "sleep":  # time passes, and what is waited for is there
    time.sleep(0.3)
    open(os.environ["AWAITED"], "w").close()
elif name == "trivet" and words[0] == "rollout-server":
    os.close(1), os.close(2)  # the script's pipes end with it
    time.sleep(20)
"""


@pytest.fixture
def started(tmp_path: Path) -> Any:
    """Runs a script among stand-ins; what they were started with."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("scontrol", "srun", "torchrun", "trivet", "curl", "sleep"):
        (folder / name).write_text(STAND_IN.format(python=sys.executable))
        (folder / name).chmod(0o755)

    def run(script: str, *arguments: str, **environment: str) -> list[list[str]]:
        log = tmp_path / f"started-{len(list(tmp_path.glob('started-*')))}"
        log.touch()
        known = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "STARTED": str(log), "HOME": str(tmp_path)}
        done = subprocess.run(
            ["bash", "-c", script, "script", *arguments],
            env=known | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in log.read_text().splitlines()]

    return run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in a folder, since a server needs its weights."""
    folder = tmp_path_factory.mktemp("base")
    tiny_lm().save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def parsed(command: list[str]) -> Any:
    """A trivet command as the real parser understands it."""
    program, name, *rest = command
    assert program == "trivet"
    return COMMANDS.commands[name].make_context(name, spread_values(rest))


def assert_trains_with(commands: list[list[str]], urls: list[str], nodes: int, head: str) -> None:
    """One training of eight processes a node, whose rollouts these servers sample."""
    (torchrun,) = [c for c in commands if c[0] == "torchrun"]
    flags = dict(zip(torchrun[1::2], torchrun[2::2], strict=False))
    assert (flags["--nnodes"], flags["--nproc_per_node"]) == (str(nodes), "8")
    assert (flags["--rdzv_backend"], flags["--rdzv_endpoint"]) == ("c10d", f"{head}:29400")
    (training,) = [c for c in commands if c[:2] == ["trivet", "run"]]
    assert torchrun[-len(training) :] == training
    found = parsed(training).params
    assert found["run_dir"] is not None and str(found["recipe"]).endswith("recipe.yaml")
    recipe = load_recipe(RECIPE, found["set_"])
    assert recipe.runtime.rollouts.engine == "vllm" and list(recipe.runtime.rollouts.servers) == urls
    asked = [c[-1] for c in commands if c[0] == "curl"]
    assert sorted(asked) == sorted(f"{url}/health" for url in urls)  # waited for each of them


def assert_serves(command: list[str], base: Path) -> None:
    """A server for all machines, over eight GPUs, by a flag that goes to vLLM."""
    context = parsed(command)
    assert (context.params["host"], context.params["port"], context.args) == (
        "0.0.0.0",
        8000,
        ["--tensor-parallel-size", "8"],
    )
    recipe = load_recipe(RECIPE | {"base": str(base)}, may_idle=True)
    line = command_line(recipe, context.params["python"], context.params["host"], 8000, context.args)
    assert line[-2:] == ["--tensor-parallel-size", "8"]


def test_slurm_starts_training_on_the_first_nodes_and_servers_on_the_others(started: Any, base: Path) -> None:
    text = (LAUNCH / "slurm.sbatch").read_text()
    assert text.startswith("#!/bin/bash\n") and "#SBATCH --nodes=4\n" in text
    commands = started(
        text,
        "recipe.yaml",
        "/shared/runs/mine",
        SLURM_JOB_NODELIST="n[1-4]",
        SLURM_JOB_ID="7",
        SLURM_GPUS_ON_NODE="8",
    )
    assert_trains_with(commands, ["http://n3:8000", "http://n4:8000"], nodes=2, head="n1")
    steps = [c for c in commands if c[0] == "srun"]
    assert sorted(next(w for w in c if w.startswith("--nodelist")) for c in steps) == [
        "--nodelist=n1,n2",
        "--nodelist=n3",
        "--nodelist=n4",
    ]
    servers = [c for c in commands if c[:2] == ["trivet", "rollout-server"]]
    assert len(servers) == 2
    for command in servers:
        assert_serves(command, base)


def test_kubernetes_objects_fit_together_and_start_the_same(started: Any, base: Path) -> None:
    found = {
        (o["kind"], o["metadata"]["name"]): o for o in yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    }
    assert len(found) == 5
    pool, job = found["StatefulSet", "trivet-servers"]["spec"], found["Job", "trivet-train"]["spec"]
    servers = pool["template"]["spec"]["containers"][0]
    assert_serves(servers["command"], base)
    assert servers["readinessProbe"]["httpGet"] == {"path": "/health", "port": 8000}
    assert found["Service", pool["serviceName"]]["spec"]["selector"] == pool["selector"]["matchLabels"]
    assert pool["template"]["metadata"]["labels"] == pool["selector"]["matchLabels"]
    assert job["template"]["spec"]["subdomain"] in {name for kind, name in found if kind == "Service"}
    assert job["completionMode"] == "Indexed" and job["completions"] == job["parallelism"] == 2
    train = job["template"]["spec"]["containers"][0]
    for pod in (pool["template"]["spec"], job["template"]["spec"]):
        claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
        assert claims == ["trivet-shared"] and ("PersistentVolumeClaim", "trivet-shared") in found
        volumes = {v["name"] for v in pod["volumes"]}
        assert {m["name"] for m in pod["containers"][0]["volumeMounts"]} == volumes
    assert train["command"] == ["bash", "-ec"] and len(train["args"]) == 1
    commands = started("set -e\n" + train["args"][0])
    urls = [f"http://trivet-servers-{i}.trivet-servers:8000" for i in range(pool["replicas"])]
    assert_trains_with(commands, urls, nodes=2, head="trivet-train-0.trivet-train")


def test_skypilot_nodes_take_their_parts_and_servers_end_with_the_training(
    started: Any, base: Path, tmp_path: Path
) -> None:
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    envs = task["envs"] | {
        "RUN_DIR": str(run_dir),
        "SKYPILOT_NODE_IPS": "1.1.1.1\n2.2.2.2\n3.3.3.3\n4.4.4.4",
        "SKYPILOT_TASK_ID": "t",
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
    }
    assert task["num_nodes"] == 4 and all(isinstance(v, str) for v in envs.values())
    urls = ["http://3.3.3.3:8000", "http://4.4.4.4:8000"]
    for rank in ("0", "1"):
        commands = started(task["run"], **envs, SKYPILOT_NODE_RANK=rank)
        assert_trains_with(commands, urls, nodes=2, head="1.1.1.1")
    (done_file,) = run_dir.iterdir()
    done_file.unlink()
    commands = started(task["run"], **envs, SKYPILOT_NODE_RANK="3", AWAITED=str(done_file))
    (command,) = [c for c in commands if c[0] == "trivet"]
    assert_serves(command, base)


@pytest.mark.parametrize("script", ["slurm.sbatch"])
def test_shell_parses(script: str) -> None:
    assert subprocess.run(["bash", "-n", str(LAUNCH / script)], capture_output=True).returncode == 0


def test_every_launch_file_has_a_test_and_a_place_in_the_docs() -> None:
    names = sorted(p.name for p in LAUNCH.iterdir())
    assert names == ["kubernetes.yaml", "skypilot.yaml", "slurm.sbatch"]
    page = (ROOT / "docs" / "how-to" / "many_nodes.md").read_text()
    assert all(f"examples/launch/{name}" in page for name in names)
