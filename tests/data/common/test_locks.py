"""Locks between processes: what another process holds is told from what a file system cannot do."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from data.common.errors import UserError
from data.common.locks import lock
from models.backbone.processes import Processes
from pipelines.workspace.run_folder import RunFolder, holder
from pipelines.workspace.store import Store


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP], ids=os.strerror)
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file system such as NFS without its lock server, or Lustre as it is mounted by default."""

    def refuse(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)
    return os.strerror(request.param)


def test_one_process_at_a_time_or_several_that_share(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("a+") as first, (tmp_path / "lock").open("a+") as second:
        assert lock(first, shared=True) and lock(second, shared=True) and not lock(first)
        second.close()
        assert lock(first)
        with (tmp_path / "lock").open("a+") as third:
            assert not lock(third) and not lock(third, shared=True)
    with (tmp_path / "lock").open("a+") as file:  # the first has gone, and its lock with it
        assert lock(file, wait=True)


def test_a_file_system_without_locks_is_not_taken_for_another_run(tmp_path: Path, without_locks: str) -> None:
    folder = RunFolder(tmp_path / "run", Processes("cpu"))
    what = f"cannot be locked on this file system .{without_locks}"
    with pytest.raises(UserError, match=what) as found, folder.held():
        pass
    assert "another run" not in str(found.value)
    assert (tmp_path / "run" / ".lock").is_file() and holder(tmp_path / "run") == ""


def test_a_store_without_locks_is_not_taken_for_one_in_use(tmp_path: Path, without_locks: str) -> None:
    store = Store(tmp_path / "store")
    with pytest.raises(UserError, match="cannot be locked on this file system"), store.alone():
        pass
