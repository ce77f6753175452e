"""``trivet rollout-server``: a vLLM server for a recipe's rollouts, in an environment of its own."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from data.common.errors import UserError
from pipelines.recipe.schema import Recipe

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes for --max-lora-rank
ENVIRONMENT = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_NO_USAGE_STATS": "1"}


def command_line(recipe: Recipe, python: str, host: str, port: int, more: Sequence[str] = ()) -> list[str]:
    """The command that serves a recipe's base for its rollouts.

    Args:
        recipe: whose base, adapters and limits are served.
        python: the interpreter that has vLLM.
        host: the address to listen at.
        port: and its port.
        more: further flags of vLLM; a later one counts.

    Raises:
        UserError: the recipe makes its base itself, or its adapters are larger than vLLM takes.
    """
    import torch

    from models.backbone.processes import chosen_device
    from models.hub.load import dtype_of
    from models.hub.registry import resolve_base

    if not isinstance(recipe.base, str):
        raise UserError("base: {pretrain: ...} is made by the run, and a server needs its weights: name a folder")
    rank = next((r for r in RANKS if r >= recipe.adapter.written_rank), None)
    if rank is None:
        raise UserError(f"adapter.rank: vLLM takes ranks up to {RANKS[-1]}, not {recipe.adapter.written_rank}")
    spec = resolve_base(recipe.base, base_dir=recipe.base_dir)
    dtype = dtype_of(spec, recipe.runtime.dtype, torch.device(chosen_device(recipe.runtime.device)))
    room = recipe.ppo.max_prompt_tokens + recipe.ppo.max_new_tokens
    revision = ["--revision", spec.revision] if spec.revision else []
    return [
        *(python, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", spec.source, *revision, "--served-model-name", "base"),
        *("--host", host, "--port", str(port), "--dtype", str(dtype).removeprefix("torch.")),
        *("--max-model-len", str(room), "--enable-lora", "--max-lora-rank", str(rank), "--max-loras", "2"),
        *("--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"),
        *more,
    ]


def check_python(python: str) -> None:
    """Raises UserError where an interpreter is not there or has no vLLM."""
    try:
        asked = subprocess.run(
            [python, "-c", "import importlib.util as u, sys; sys.exit(u.find_spec('vllm') is None)"], check=False
        )
    except OSError as error:
        raise UserError(f"--python {python}: {error.strerror}; name the interpreter that has vLLM") from None
    if asked.returncode:
        raise UserError(
            f"--python {python} has no vLLM. vLLM pins other versions than trivet, so it lives in an environment of "
            "its own: python3 -m venv vllm-env && vllm-env/bin/pip install vllm, then --python vllm-env/bin/python"
        )


def serve(recipe: Recipe, python: str, host: str, port: int, more: Sequence[str], show: bool) -> int:
    """Serve until the server ends; its exit status. With ``show`` the command is printed instead."""
    line = command_line(recipe, python, host, port, more)
    if show:
        print(" ".join(f"{k}={v}" for k, v in ENVIRONMENT.items()), shlex.join(line))
        return 0
    check_python(python)
    print(
        f"starting vLLM at http://{host}:{port}; in the recipe:\n\n  runtime:\n    rollouts: {{engine: vllm, "
        f'servers: ["http://{host}:{port}"]}}\n',
        flush=True,
    )
    child = subprocess.Popen(line, env=os.environ | ENVIRONMENT, cwd=Path.cwd())
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:  # the terminal's Ctrl-C reached it as well
            continue
