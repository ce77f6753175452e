"""What launchers tell each process by its environment, checked before the processes seek each other.

Light: imports no torch. A part of a launcher's environment would otherwise be waited on for minutes, or several
processes would each believe to be alone and do all of the work in one folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from data.common.errors import UserError

LAUNCHED = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
"""Where launchers write how many processes they started: torchrun and accelerate, Open MPI, other MPIs, srun."""


START = (
    "start with `torchrun --nproc_per_node N --no-python trivet run RECIPE` on a CPU, "
    "`accelerate launch --no_python trivet run RECIPE` on GPUs"
)
RENDEZVOUS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torch's launchers tell each process; two of them are words of torch's alone, and mean that it was launched."""


PLUGINS = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}
"""What accelerate tells processes whose models it is to wrap or divide."""


def check_plugins(environment: Mapping[str, str]) -> None:
    """Refuse a launcher that would divide models by its own means, under the feet of roles that share one base.

    Raises:
        UserError: names the setting that divides the base.
    """
    for name, plugin in PLUGINS.items():
        if environment.get(name, "").strip().lower() in ("1", "true", "yes", "on", "y", "t"):
            raise UserError(
                f"{name}={environment[name]}: accelerate launch is set up for {plugin}, and trivet divides the base "
                "itself: take that out of the launch (`accelerate config`, --config_file, --use_fsdp, --use_deepspeed) "
                "and set runtime.sharding: fsdp2"
            )


def check_launch(environment: Mapping[str, str]) -> None:
    """Refuse what only a part of a launcher's environment says, before anybody waits for processes that never come.

    Raises:
        UserError: a variable is missing, is no number or is out of range, or asks for another way to divide models.
    """
    check_plugins(environment)
    given = {name: environment.get(name, "") for name in RENDEZVOUS}
    if not given["RANK"] and not given["WORLD_SIZE"]:
        if given["LOCAL_RANK"]:
            raise UserError(
                f"LOCAL_RANK={given['LOCAL_RANK']}: is set without RANK and WORLD_SIZE; {START}, or unset it"
            )
        return
    if given["WORLD_SIZE"] == "1" and given["RANK"] in ("", "0") and not given["LOCAL_RANK"]:  # one, whoever said so
        return
    for name in RENDEZVOUS[:3]:
        if given[name] and not re.fullmatch("[0-9]{1,9}", given[name]):
            raise UserError(f"{name}={given[name]}: is no number of a process; {START}, or unset it")
    missing = [name for name, value in given.items() if not value]
    if missing:
        there = ", ".join(f"{name}={value}" for name, value in given.items() if value)
        raise UserError(
            f"{there}: a launcher's environment without {', '.join(missing)}; {START}, or unset the variables to run "
            "one process"
        )
    rank, count, local = (int(given[name]) for name in RENDEZVOUS[:3])
    if rank >= count or local >= count:
        raise UserError(
            f"RANK={rank}, LOCAL_RANK={local}: of WORLD_SIZE={count} processes, whose ranks end at {count - 1}; {START}"
        )
    port = given["MASTER_PORT"]
    if not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise UserError(f"MASTER_PORT={port}: is no port (1 to 65535), at which the processes meet; {START}")


def check_alone(command: str, environment: Mapping[str, str]) -> None:
    """Refuse a command that one process does where a launcher started several, which would all write the same files.

    torchrun and accelerate set LOCAL_RANK; without it WORLD_SIZE may be that of a pod in which the user types commands.

    Raises:
        UserError: names the variable that speaks of several processes.
    """
    launched = environment.get("RANK") and environment.get("LOCAL_RANK")
    for name in LAUNCHED if launched else LAUNCHED[1:]:
        count = environment.get(name, "")
        if re.fullmatch("[0-9]{1,9}", count) and int(count) > 1:
            raise UserError(
                f"trivet {command}: is the work of one process, and the launcher started {count} ({name}={count}), "
                f"which would all do it at once; give this command without the launcher, or unset {name}"
            )
        if count:
            return


def check_devices(gpus: int, environment: Mapping[str, str]) -> None:
    """Refuse more processes on this machine than it shows GPUs: two of them cannot meet on one.

    Raises:
        UserError: there is no GPU for this process.
    """
    local = environment.get("LOCAL_RANK") or "0"
    if int(local) >= gpus:
        raise UserError(
            f"LOCAL_RANK={local}: this machine shows {gpus} GPUs, each for one process; start at most {gpus} "
            "processes here, or set runtime.device: cpu"
        )


def check_world_size(world_size: int, environment: Mapping[str, str]) -> None:
    """Compare the number of processes that work together with the number that a launcher started.

    Raises:
        UserError: they disagree, so that several processes would each do all of the work, in one folder.
    """
    name = next((n for n in LAUNCHED if environment.get(n, "").isdigit()), None)
    if name is not None and int(environment[name]) != world_size:
        raise UserError(
            f"{name}={environment[name]}: the launcher speaks of {environment[name]} processes, but this one "
            f"works with {world_size}; {START}, or unset {name}"
        )
