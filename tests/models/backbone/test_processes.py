"""Several processes: where one fails, none waits for it."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import TrainingArguments
from trl import SFTConfig

from data.common.errors import StageError, UserError
from data.common.http_client import RemoteError
from models.backbone.processes import Processes, chosen_device
from stages import sft
from stages.settings import SFTConfig as sft_config
from stages.training.hf_trainer import on_one_device
from tests.conftest import make_base
from tests.support.ppo import make_context


def both(work: Callable[[Processes], Any]) -> list[Any]:
    """What each of two processes, played by threads, returns or raises."""
    items: dict[int, list[Any]] = {}
    gate = threading.Barrier(2, timeout=10)
    out: list[Any] = [None, None]

    class Played(Processes):
        def __init__(self, rank: int) -> None:
            self.rank, self.world_size = rank, 2

        def gather(self, mine: Any) -> list[Any]:
            gate.wait()
            items[self.rank] = list(mine)
            gate.wait()
            return items[0] + items[1]

    def run(rank: int) -> None:
        try:
            out[rank] = work(Played(rank))
        except Exception as error:
            out[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(20)
        assert not t.is_alive(), "it hangs"
    return out


def test_what_the_main_process_found_all_know():
    assert both(lambda p: p.on_main(lambda: {"by": p.rank})) == [{"by": 0}, {"by": 0}]
    assert both(lambda p: p.together(lambda: p.rank)) == [0, 1]


@pytest.mark.parametrize(
    ("error", "kind"), [(RemoteError("dead"), StageError), (UserError("wrong"), UserError), (KeyError(3), StageError)]
)
@pytest.mark.parametrize("failing", [0, 1])
def test_one_that_fails_stops_all_with_its_reason(error: Exception, kind: type, failing: int):
    def work(p: Processes) -> None:
        if p.rank == failing:
            raise error

    found = both(lambda p: p.together(lambda: work(p)))
    assert found[failing] is error
    other = found[1 - failing]
    own = re.escape(str(error))
    if isinstance(error, KeyError):  # which nobody foresaw: as a process that is lost
        own = r"\(pid \d+ on .+\) failed between stages with KeyError: 3, .*; the same command resumes"
    assert type(other) is kind and re.match(f"process {failing}:? {own}", str(other))
    if failing == 0:
        assert both(lambda p: p.on_main(lambda: work(p)))[0] is error


def test_alone_there_is_nothing_to_agree_on():
    alone = Processes("cpu")
    assert alone.on_main(lambda: 5) == 5
    with pytest.raises(KeyError):
        alone.together(lambda: {}["x"])


class TwoGpus:
    """A machine that shows two GPUs, without one: torch is asked for a device, never for a tensor on it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_the_device_is_chosen_before_processes_meet(monkeypatch):
    """Without a GPU 'auto' is the CPU, by name: a launcher's processes meet on it."""
    assert chosen_device("auto") == chosen_device("cpu") == "cpu"
    assert Processes("auto").device.type == "cpu" and os.environ["ACCELERATE_USE_CPU"] == "true"
    with pytest.raises(UserError, match="torch sees no GPU"):
        chosen_device("cuda")
    TwoGpus(monkeypatch)
    assert chosen_device("auto") == chosen_device("cuda") == "cuda" and chosen_device("cpu") == "cpu"


def test_one_process_says_that_it_leaves_devices_alone(monkeypatch):
    alone = Processes("cpu")
    TwoGpus(monkeypatch)
    assert alone.unused_devices == ""
    alone.device = torch.device("cuda:0")
    assert re.search(r"2 GPUs are visible, and one process uses one.*accelerate launch", alone.unused_devices)
    alone.world_size = 2
    assert alone.unused_devices == ""


def test_a_trainer_of_one_process_never_enters_data_parallel(tmp_path, monkeypatch):
    """TRL refuses ``nn.DataParallel`` and Transformers enters it wherever a process counts more than one GPU."""
    settings = {"use_cpu": True, "bf16": False, "report_to": [], "output_dir": str(tmp_path)}
    for kind in (TrainingArguments, SFTConfig):
        many = kind(**settings)
        many._n_gpu = 2
        assert on_one_device(many).n_gpu == 1 and on_one_device(kind(**settings)).n_gpu <= 1
        assert many.train_batch_size == many.per_device_train_batch_size


def test_sft_builds_a_trainer_of_one_device(tmp_path, monkeypatch):
    """Through the stage's own code: whatever the arguments counted, the trainer has one device."""
    context = make_context(make_base(), tmp_path)
    monkeypatch.setattr(TrainingArguments, "__post_init__", _counting_two(TrainingArguments.__post_init__))
    context.base.add_role("sft", context.adapter)
    rows = [context.renderer.conversation([{"role": "user", "content": "w1"}], "w2")] * 2
    trainer = sft.make_trainer(context, rows, sft_config(batch=2))
    assert trainer.args.n_gpu == 1


def _counting_two(real: Callable[..., None]) -> Callable[..., None]:
    def init(self: Any) -> None:
        real(self)
        self._n_gpu = 2

    return init
