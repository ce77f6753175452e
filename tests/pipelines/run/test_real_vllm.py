"""A pipeline whose rankings and rollouts a real vLLM samples, on a CPU, in an environment of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from contextlib import contextmanager

import pytest
import torch

from data.common.http_client import RemoteError, Server
from models.roles.export import save_adapter
from models.roles.shared_base import SharedBase
from models.sampling.generate import CachedEngine, SamplingParams
from models.sampling.remote import RemoteEngine
from models.sampling.settings import RolloutServers
from models.sampling.vllm_server import VLLMServer
from pipelines.cli.rollout_server import ENVIRONMENT, command_line
from pipelines.loading.load import load_recipe
from pipelines.run.pipeline import Pipeline
from tests.conftest import ADAPTER, randomise, tiny_lm, word_tokenizer
from tests.support.recipes import ROOT

pytestmark = pytest.mark.slow
PYTHON = os.environ.get("TRIVET_VLLM_PYTHON", str(ROOT / ".vllm-env" / "bin" / "python"))
# Compiled kernels take minutes on a CPU; the cache of keys and values takes a share of memory that is free elsewhere.
ON_CPU = {"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A base whose heads are as wide as vLLM's kernels ask for, and data for every stage."""
    if not os.path.exists(PYTHON):
        pytest.skip("no vLLM: `make vllm-env` builds an environment for it")
    folder = tmp_path_factory.mktemp("vllm")
    tiny_lm(hidden_size=128, intermediate_size=128, initializer_range=0.2).save_pretrained(folder / "base")
    word_tokenizer().save_pretrained(folder / "base")
    rows = [{"prompt": f"w{i} w{i + 1}", "completion": f"w{i + 2}"} for i in range(1, 25)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "judge.py").write_text(
        "def score(prompts, completions, **columns):\n    return [float(len(set(c.split()))) for c in completions]\n"
    )
    return {
        "base": str(folder / "base"),
        "template": "dialogue",
        "data": {"demonstrations": str(folder / "rows.jsonl"), "prompts": str(folder / "rows.jsonl"), "held_out": 0.2},
        "adapter": {"rank": 4, "alpha": 8},
        "sft": {"batch": 8, "max_tokens": 48},
        "rankings": {"annotator": f"{folder}/judge.py:score", "prompts": 8, "answers": 3, "max_new_tokens": 8},
        "reward": {"batch": 8, "max_tokens": 48, "calibration_samples": 8, "gate": False},
        "ppo": {"updates": 3, "rollouts": 8, "learning_rate": 1e-2, "max_new_tokens": 8, "max_prompt_tokens": 40},
        "evaluation": {"prompts": 4, "bootstrap": 50},
        "runtime": {"device": "cpu", "dtype": "float32", "threads": 1},
    }


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def vllm(recipe, folder):
    """A server as ``trivet rollout-server`` starts it; yields its process and address."""
    port = free_port()
    line = command_line(load_recipe(recipe), PYTHON, "127.0.0.1", port, ["--enforce-eager"])
    with (folder / f"vllm-{port}.log").open("wb") as log:
        environment = os.environ | ENVIRONMENT | ON_CPU | {"HF_HUB_OFFLINE": "1"}
        environment.pop("PYTHONPATH", None)
        child = subprocess.Popen(line, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            asked, end = VLLMServer(Server(url=url, timeout=5.0, retries=0)), time.monotonic() + 600
            while True:
                try:
                    asked.models()
                    break
                except RemoteError:
                    assert child.poll() is None and time.monotonic() < end, (folder / log.name).read_text()[-3000:]
                    time.sleep(1.0)
            yield child, url
        finally:
            if child.poll() is None:
                os.killpg(child.pid, 9)
            child.wait()


def test_a_whole_pipeline_and_a_server_that_is_killed(recipe, tmp_path):
    with vllm(recipe, tmp_path) as (first, one), vllm(recipe, tmp_path) as (_, other):
        base = SharedBase.load(recipe["base"], device="cpu", dtype="float32")
        prompts, params = [[5, 6], [7, 8, 9], [10]], SamplingParams(max_new_tokens=8, temperature=0.8, stop_ids=(2,))
        noise = torch.rand((3, 8), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        engine = RemoteEngine(RolloutServers(engine="vllm", servers=(one, other)))
        for seed in (1, 2):
            base.add_role(f"r{seed}", ADAPTER)
            randomise(base, f"r{seed}", seed)
            save_adapter(base, f"r{seed}", tmp_path / f"r{seed}")
            assert engine.load(f"r{seed}", str(tmp_path / f"r{seed}")) == []
            with base.role(f"r{seed}") as role:
                greedy = engine(role, prompts, params=params, noise=None)
                assert greedy.ids == CachedEngine()(role, prompts, params=params, noise=None).ids
                engine(role, prompts, params=params, noise=noise)
        servers = {"engine": "vllm", "servers": [one, other], "retries": 0, "backoff": 0.1}
        made = recipe | {"runtime": recipe["runtime"] | {"rollouts": servers}}
        pipeline = Pipeline.from_recipe(made, run_dir=tmp_path / "run")
        pipeline.run(only=["sft", "rankings", "reward"])
        os.killpg(first.pid, 9)
        first.wait()
        Pipeline.from_recipe(made, run_dir=tmp_path / "run").run()
    rows = [json.loads(line) for line in (tmp_path / "run" / "ppo" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and all(0 < row["rollout/server_gap_max"] < 1e-4 for row in rows)
