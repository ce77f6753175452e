"""What a launcher says of its processes: whole, or refused before anybody waits."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.common.errors import UserError
from models.backbone.launch import check_alone, check_devices, check_launch, check_world_size
from models.backbone.processes import Processes
from pipelines.cli import main as cli

WHOLE = {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        WHOLE,
        WHOLE | {"RANK": "2", "LOCAL_RANK": "0"},  # the second of two machines
        WHOLE | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
        {"WORLD_SIZE": "1"},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},  # says nothing of processes
        {"OMPI_COMM_WORLD_SIZE": "2"},  # mpirun has words of its own
    ],
)
def test_a_whole_environment_is_taken(environment: dict[str, str]):
    check_launch(environment)


@pytest.mark.parametrize("missing", WHOLE)
def test_a_part_of_an_environment_is_refused_by_what_is_missing(missing: str):
    part = {name: value for name, value in WHOLE.items() if name != missing}
    with pytest.raises(UserError, match=rf"without {missing}; .*torchrun.*unset"):
        check_launch(part)
    with pytest.raises(UserError, match=rf"without {missing}"):
        check_launch(part | {missing: ""})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: is no number"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE=-1: is no number"),
        ({"RANK": "1.5"}, r"RANK=1\.5: is no number"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK=x: is no number"),
        ({"RANK": "3"}, "RANK=3, LOCAL_RANK=1: of WORLD_SIZE=3 processes, whose ranks end at 2"),
        ({"LOCAL_RANK": "3"}, "LOCAL_RANK=3: of WORLD_SIZE=3"),
        ({"WORLD_SIZE": "0"}, "of WORLD_SIZE=0"),
        ({"MASTER_PORT": "abc"}, r"MASTER_PORT=abc: is no port \(1 to 65535\)"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT=0: is no port"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT=99999: is no port"),
        ({"MASTER_PORT": "-1"}, "MASTER_PORT=-1: is no port"),
    ],
)
def test_ranks_that_cannot_be_are_refused(change: dict[str, str], words: str):
    with pytest.raises(UserError, match=words):
        check_launch(WHOLE | change)


@pytest.mark.parametrize(
    ("name", "plugin"), [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")]
)
def test_a_launcher_that_would_divide_models_itself_is_refused(name: str, plugin: str, monkeypatch):
    with pytest.raises(UserError, match=rf"{name}=true: .*{plugin}.*runtime\.sharding: fsdp2"):
        check_launch(WHOLE | {name: "true"})
    check_launch(WHOLE | {name: "false"})
    monkeypatch.setenv(name, "True")
    with pytest.raises(UserError, match=r"runtime\.sharding"):
        Processes("cpu")


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        (WHOLE, "WORLD_SIZE=3"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "SLURM_STEP_NUM_TASKS=4"),
        ({"PMI_SIZE": "2", "WORLD_SIZE": "2"}, "PMI_SIZE=2"),  # a pod's, and mpirun's within it
    ],
)
def test_what_one_process_does_is_refused_to_several(environment: dict[str, str], name: str):
    with pytest.raises(UserError, match=f"trivet export: is the work of one process.*{name}"):
        check_alone("export", environment)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        WHOLE | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
        {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "29500"},  # a pod; the user types in it
        {"SLURM_STEP_NUM_TASKS": "1"},
        WHOLE | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "SLURM_STEP_NUM_TASKS": "2"},
    ],
)
def test_one_process_may_do_it(environment: dict[str, str]):
    check_alone("export", environment)


@pytest.mark.parametrize(
    "arguments",
    [
        *(["export", "run", "--stage", "ppo", "--to", "out"], ["report", "run"], ["score", "run", "answers.jsonl"]),
        *(["data", "fix", "chats.jsonl"], ["gc", "run", "--yes"], ["serve-reward", "run"], ["chat", "run"]),
        *(["ls"], ["verify", "run"], ["watch", "run"], ["models"], ["data", "check", "chats.jsonl"]),
    ],
)
def test_commands_of_one_process_say_so_under_a_launcher(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Each would write the same files as the others at once."""
    for name, value in WHOLE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2 and not list(tmp_path.iterdir())
    assert f"trivet {arguments[0]}: is the work of one process" in capsys.readouterr().err


def test_a_local_rank_alone_is_refused():
    with pytest.raises(UserError, match="LOCAL_RANK=0: is set without RANK and WORLD_SIZE"):
        check_launch({"LOCAL_RANK": "0"})


def test_a_launcher_that_speaks_of_other_processes_is_an_error():
    for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
        with pytest.raises(UserError, match=f"{name}=2: .* 2 processes, but this one works with 1; .*torchrun"):
            check_world_size(1, {name: "2"})
        check_world_size(2, {name: "2"})
    check_world_size(8, {"WORLD_SIZE": "8", "SLURM_STEP_NUM_TASKS": "2"})  # torchrun once a node
    check_world_size(1, {})


def test_every_process_needs_a_gpu_of_its_own():
    check_devices(1, {})
    check_devices(2, {"LOCAL_RANK": "1"})
    with pytest.raises(UserError, match=r"LOCAL_RANK=2: this machine shows 2 GPUs, .* at most 2 processes here"):
        check_devices(2, {"LOCAL_RANK": "2"})


def test_a_command_under_a_part_of_a_launcher_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="RANK=0: a launcher's environment without WORLD_SIZE"):
        Processes("auto")
    assert cli.main(["run", "examples/tiny.yaml", "--run-dir", str(tmp_path / "run")]) == 2
    assert "without WORLD_SIZE, LOCAL_RANK, MASTER_ADDR" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
