"""``trivet rollout-server``: a vLLM server for a recipe's rollouts, in an environment of its own."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from data.common.errors import UserError
from pipelines.recipe.schema import Recipe

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes for --max-lora-rank
PATIENCE = 10.0  # seconds that a server has to end in order
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

    if not isinstance(recipe.base, str) or recipe.continued is not None:
        raise UserError("base: is made by the run, and a server needs its weights: name the folder that it was made in")
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
    return supervised(line, os.environ | ENVIRONMENT)


def supervised(
    line: Sequence[str], environment: Mapping[str, str], patience: float = PATIENCE, folder: Path | None = None
) -> int:
    """Run a server until it ends, or until a signal asks this process to: then the server and whatever it has started
    end as well.

    Args:
        line: its command.
        environment: of it.
        patience: seconds that it has to end in order, before it is killed.
        folder: where it runs; None: here.

    Returns:
        Its exit status; 128 and the signal's number where there was one.
    """
    asked = list[int]()

    def stop(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if started:
            started[0].terminate()

    started = list[subprocess.Popen[bytes]]()
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    # a session of its own: the terminal's Ctrl-C would reach it a second time
    child = subprocess.Popen(line, env=environment, cwd=folder or Path.cwd(), start_new_session=True)
    started.append(child)
    if asked:  # before it was there
        child.terminate()
    try:
        while child.poll() is None and not asked:
            time.sleep(0.1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(patience)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # engines that it has left as well
        for number, handler in before.items():
            signal.signal(number, handler)
    code = child.wait()
    return 128 + asked[0] if asked else code
