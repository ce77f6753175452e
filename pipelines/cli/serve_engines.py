"""``trivet serve --engine``: a stage of a run, exported, behind another server of OpenAI's protocol."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.common.errors import UserError, nearest
from data.common.loopback import HOST
from data.storage.folders import scratch_folder
from pipelines.cli.rollout_server import check_python, supervised
from pipelines.ui.commands import COMMAND, environment

OWN = "trivet"


@dataclass(frozen=True, slots=True)
class Engine:
    """A server of somebody else's: its command for a folder, and what must be installed for it."""

    command: Callable[[str, str, int], list[str]]
    """Interpreter, the name of the model's folder, which requests name, and the port -> the command line."""
    check: Callable[[str], None]
    """Raises UserError where an interpreter cannot start it."""
    variables: Mapping[str, str]


def _transformers(python: str, name: str, port: int) -> list[str]:
    start = "from transformers.cli.transformers import main; main()"
    return [python, "-c", start, "serve", name, "--host", HOST, "--port", str(port)]


def _vllm(python: str, name: str, port: int) -> list[str]:
    start = [python, "-m", "vllm.entrypoints.openai.api_server"]
    return [*start, "--model", name, "--host", HOST, "--port", str(port)]


def _check_transformers(python: str) -> None:
    if python != sys.executable:
        raise UserError("--python is for vLLM: transformers is this environment's own")
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--engine transformers needs {' and '.join(missing)}: pip install 'transformers[serving]'")


OFFLINE = {"HF_HUB_OFFLINE": "1"}
ENGINES = {
    "transformers": Engine(_transformers, _check_transformers, OFFLINE),
    "vllm": Engine(_vllm, check_python, OFFLINE | {"VLLM_NO_USAGE_STATS": "1"}),
}


def engine_named(name: str) -> Engine:
    """One of ``ENGINES``.

    Raises:
        UserError: there is none of that name.
    """
    if name not in ENGINES:
        known = (OWN, *ENGINES)
        raise UserError(f"--engine {name}: no such server.{nearest(name, known)} One of: {', '.join(known)}")
    return ENGINES[name]


def serve(engine: str, run: str, stage: str | None, port: int, python: str | None, more: Sequence[str]) -> int:
    """Export a stage with its adapter merged and serve the folder until the server ends.

    Args:
        engine: one of ``ENGINES``.
        run: a run folder.
        stage: of it; None: the last one that is finished.
        port: 0 takes a free one.
        python: the interpreter that has the server; None: this one.
        more: further flags of the server.

    Returns:
        The exit status of the export where that fails, else of the server; 0 where a signal asked for its end.

    Raises:
        UserError: no such engine, stage or run, or the server is not installed.
    """
    chosen, python = engine_named(engine), python or sys.executable
    chosen.check(python)
    name, exported, dtype = _stage(run, stage)
    folder = scratch_folder().path / "served"
    if failed := _export(run, exported, folder / name, dtype):
        return failed
    port = port or _free_port()
    print(
        f"starting {engine}: '{name}' of {run} at http://{HOST}:{port}/v1, as model '{name}', for this machine only; "
        "Ctrl-C ends it",
        flush=True,
    )
    line = [*chosen.command(_from_anywhere(python), name, port), *more]
    code = supervised(line, os.environ | chosen.variables, folder=folder)
    return 0 if code - 128 in (signal.SIGINT, signal.SIGTERM) else code


def _stage(run: str, stage: str | None) -> tuple[str, str, str]:
    """A stage's name, the stage whose export it is, and the precision in which the run computes here."""
    import torch

    from models.backbone.processes import chosen_device
    from models.hub.load import dtype_of
    from models.roles.saving import DTYPES
    from pipelines.run.chat_models import stage_of
    from pipelines.run.open_run import open_run, stage_folder
    from pipelines.workspace.run_folder import run_of

    path = Path(run)
    if run_of(path) is None:
        raise UserError(f"{run}: is no run folder; --engine serves a stage of a run")
    name = stage_of(path, open_run(path), stage)
    pipeline = open_run(path, stage=name)
    exported = (pipeline.recipe.base_stage or "base") if name == "base" else name
    if exported == "base":
        raise UserError(
            f"--stage base: no stage of {run} has made it; the server takes {pipeline.loaded.spec.source} itself"
        )
    stage_folder(pipeline, exported)
    device = torch.device(chosen_device(pipeline.recipe.runtime.device))
    dtype = dtype_of(pipeline.loaded.spec, pipeline.recipe.runtime.dtype, device)
    return name, exported, next(key for key, value in DTYPES.items() if value == dtype)


def _export(run: str, stage: str, folder: Path, dtype: str) -> int:
    """Write the folder in a process of its own, whose exit code it is: what that takes of memory is free afterwards."""
    line = [*COMMAND, "export", run, "--stage", stage, "--to", str(folder), "--merge", "--dtype", dtype]
    return subprocess.run(line, env=environment(), check=False, stdout=subprocess.DEVNULL).returncode


def _from_anywhere(python: str) -> str:
    """An interpreter's path that holds in another folder; a link stays one, by which it knows its environment."""
    return os.path.abspath(python) if os.sep in python else python


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((HOST, 0))
        return int(found.getsockname()[1])
