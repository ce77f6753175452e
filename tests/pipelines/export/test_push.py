"""Exports go to a hub whole, private and never over something: against a double of the hub's HTTP API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from data.common.errors import UserError
from pipelines.cli import main as cli
from pipelines.export.push import Repository
from tests.support.hub_double import TOKEN, Hub, Repo, hub_double

FILES = {"README.md": b"---\ntags: [trivet]\n---\n# x\n", "config.json": b"{}", "model.safetensors": b"12345678" * 9}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A double that the client finds by HF_ENDPOINT, with a token in HF_TOKEN and nothing else of this machine's."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # large files by LFS, which the double speaks
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with hub_double() as double:
        monkeypatch.setenv("HF_ENDPOINT", double.address)
        monkeypatch.setattr(constants, "ENDPOINT", double.address)
        yield double


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "export"
    made.mkdir()
    for name, content in FILES.items():
        (made / name).write_bytes(content)
    return made


def written(hub: Hub) -> list[tuple[str, str]]:
    """The requests that change something."""
    return [(m, p) for m, p in hub.asked if m == "PUT" or "create" in p or "commit" in p or "batch" in p]


def test_a_folder_is_uploaded_whole_and_private(hub: Hub, folder: Path) -> None:
    assert Repository("me/aligned").upload(folder) == f"{hub.address}/me/aligned"
    repo = hub.repos["me/aligned"]
    assert repo.private
    assert {k: v for k, v in repo.files.items() if k != ".gitattributes"} == FILES


def test_public_is_asked_for(hub: Hub, folder: Path) -> None:
    Repository("me/aligned", public=True).upload(folder)
    assert not hub.repos["me/aligned"].private


def test_what_is_there_stays_unless_told(hub: Hub, folder: Path) -> None:
    hub.repos["me/aligned"] = Repo(private=True, files={"old.json": b"1", ".gitattributes": b"x"})
    with pytest.raises(UserError, match=r"--push me/aligned: is there already and holds 1 file.*old.json.*--overwrite"):
        Repository("me/aligned")
    assert not written(hub) and hub.repos["me/aligned"].files["old.json"] == b"1"
    Repository("me/aligned", overwrite=True).upload(folder)
    assert {k: v for k, v in hub.repos["me/aligned"].files.items() if k != ".gitattributes"} == FILES
    assert hub.repos["me/aligned"].private


def test_an_empty_repository_is_as_good_as_none(hub: Hub, folder: Path) -> None:
    """As an upload that was broken off leaves it."""
    hub.repos["me/aligned"] = Repo(private=True, files={".gitattributes": b"x"})
    Repository("me/aligned").upload(folder)
    assert hub.repos["me/aligned"].files.keys() >= FILES.keys()


def test_nothing_private_goes_into_a_public_repository(hub: Hub) -> None:
    hub.repos["me/aligned"] = Repo(private=False)
    with pytest.raises(UserError, match="everybody can read it; choose another name, or give --public"):
        Repository("me/aligned")
    assert Repository("me/aligned", public=True).exists


@pytest.mark.parametrize("name", ["model.bin", "inner/model.pt", "state.pkl", "code.py"])
def test_pickles_and_code_are_never_uploaded(hub: Hub, folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match=rf"{name} is no file of an export and is not uploaded"):
        Repository("me/aligned").upload(folder)
    assert not written(hub)


@pytest.mark.parametrize("name", ["aligned", "a/b/c", "me/", "me/al igned", "me/x..y", "../x"])
def test_what_is_no_name_is_refused_before_anybody_is_asked(hub: Hub, name: str) -> None:
    with pytest.raises(UserError, match="is no name of a repository"):
        Repository(name)
    assert not hub.asked


def test_no_token_is_one_sentence(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="there is no token for the hub; log in by `hf auth login`"):
        Repository("me/aligned")
    assert not hub.asked


def test_a_wrong_token_is_one_sentence_without_it(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = "hf_" + "b" * 30
    monkeypatch.setenv("HF_TOKEN", wrong)
    with pytest.raises(UserError, match="the hub does not accept the token") as caught:
        Repository("me/aligned")
    assert wrong not in str(caught.value) and "\n" not in str(caught.value)


def test_no_network_is_one_sentence(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"the hub cannot be reached .*; check the network and HF_ENDPOINT") as caught:
        Repository("me/aligned")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE keeps the hub's client from the network"):
        Repository("me/aligned")


@pytest.mark.parametrize(
    ("status", "words"),
    [(403, "the token may not write there"), (409, "has such a repository already"), (400, "refuses the name")],
)
def test_what_the_hub_refuses_is_one_sentence_and_the_export_stays(
    hub: Hub, folder: Path, status: int, words: str
) -> None:
    hub.refuses["/api/models/me/aligned/commit"] = status
    with pytest.raises(UserError, match=rf"--push me/aligned: .*{words}.*`hf upload me/aligned {folder}`") as caught:
        Repository("me/aligned").upload(folder)
    assert "\n" not in str(caught.value)
    assert {f.name for f in folder.iterdir()} == FILES.keys()


def test_the_command_exports_and_uploads(hub: Hub, least_run: Path, tmp_path: Path, capsys) -> None:
    to = tmp_path / "out"
    assert cli.main(["export", str(least_run), "--stage", "ppo", "--to", str(to), "--push", "me/aligned"]) == 0
    assert f"uploaded to {hub.address}/me/aligned" in capsys.readouterr().err
    local = {f.name: f.read_bytes() for f in to.iterdir()}
    assert {k: v for k, v in hub.repos["me/aligned"].files.items() if k != ".gitattributes"} == local
    assert "README.md" in local and "adapter_model.safetensors" in local
    # what is there already is found before anything is exported
    again = tmp_path / "again"
    assert cli.main(["export", str(least_run), "--stage", "ppo", "--to", str(again), "--push", "me/aligned"]) == 2
    assert "is there already" in capsys.readouterr().err and not again.exists()
    assert cli.main(["export", str(least_run), "--stage", "ppo", "--to", str(again), "--public"]) == 2
    assert "--public and --overwrite are for the repository that --push names" in capsys.readouterr().err
