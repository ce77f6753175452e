"""Names of base models become specs, without a network; what cannot be loaded safely is refused by name."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from data.common.errors import UserError
from models.hub.registry import BASE_MODELS, BaseModelSpec, check_folder, list_models, resolve_base

FAMILIES = ["Qwen 2.5", "Qwen 3", "Llama 3", "SmolLM", "Gemma", "Mistral", "OLMo 2", "Phi", "Pythia", "OPT", "GPT-2"]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the registry opened a connection")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def folder(
    path: Path, config: dict[str, object] | None = None, files: tuple[str, ...] = ("model.safetensors",)
) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
    for name in (*files, "tokenizer.json"):
        (path / name).write_text("{}")
    return path


def test_listing_has_every_family_with_licence_and_note(no_network: None) -> None:
    assert {*FAMILIES, "TinyLlama"} == {spec.family for spec in list_models()}
    for name, spec in BASE_MODELS.items():
        assert name == spec.name == name.lower()
        assert spec.licence != "not stated" and spec.note and spec.source.count("/") == 1
    assert len({(s.source, s.revision) for s in list_models()}) == len(list_models())


def test_importing_the_registry_imports_no_heavy_library() -> None:
    code = "import sys, models.hub.registry; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0


def test_names_folders_and_hub_ids(tmp_path: Path, no_network: None) -> None:
    assert resolve_base("Qwen2.5-0.5B", base_dir=tmp_path).source == "Qwen/Qwen2.5-0.5B"
    assert resolve_base("org/name@v1.2", base_dir=tmp_path).revision == "v1.2"
    place = folder(tmp_path / "base")
    assert resolve_base("base", base_dir=tmp_path).source == str(place)
    assert resolve_base("./base", base_dir=tmp_path).source == str(place)


def test_unknown_name_tells_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'qwen25-0.5b'.*Did you mean 'qwen2.5-0.5b'"):
        resolve_base("qwen25-0.5b", base_dir=tmp_path)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "../nowhere"])
def test_a_missing_folder_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"there is no such folder \(/"):
        resolve_base(name, base_dir=tmp_path)


def test_own_entries_come_from_yaml_beside_the_recipe(tmp_path: Path) -> None:
    place = folder(tmp_path / "weights")
    (tmp_path / "models.yaml").write_text("Mine: {source: ./weights, licence: MIT}\n")
    spec = resolve_base("mine", base_dir=tmp_path)
    assert (spec.source, spec.licence, spec.name) == (str(place), "MIT", "Mine")
    other = tmp_path / "other.yaml"
    other.write_text("far: {source: org/far, revision: main}\n")
    assert resolve_base("far", base_dir=tmp_path, extra=other).revision == "main"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mine: {sorce: ./weights}", r"mine\.sorce: no such setting\. Did you mean 'source'"),
        ("mine: {licence: MIT}", "source: Field required"),
        ("mine: {source: ./nothing}", "neither a folder"),
        ("- mine", "must map each name"),
        ("mine: {source: a/b, pad_token: '<p>'}", "override_source"),
    ],
)
def test_wrong_own_entries_name_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "models.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        resolve_base("mine", base_dir=tmp_path)


def test_overrides_need_a_source() -> None:
    with pytest.raises(ValueError, match="override_source"):
        BaseModelSpec(name="x", source="a/b", chat_template="{{ messages }}")


def test_unsafe_or_incomplete_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"only pickled weights \(pytorch_model.bin\)"):
        check_folder(folder(tmp_path / "pickled", files=("pytorch_model.bin",)))
    with pytest.raises(UserError, match="no weights there"):
        check_folder(folder(tmp_path / "empty", files=()))
    code: dict[str, object] = {"model_type": "invented", "auto_map": {"AutoModelForCausalLM": "code.Model"}}
    with pytest.raises(UserError, match="auto_map"):
        check_folder(folder(tmp_path / "code", code))
    check_folder(folder(tmp_path / "known", {"model_type": "phi3", "auto_map": {"AutoConfig": "code.Config"}}))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="is an adapter, not a model"):
        check_folder(adapter)
