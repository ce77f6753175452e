"""Hostile adapters, model folders, tokenizers and hub caches: one clear error, and no code of theirs."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from data import tokens
from data.common.errors import UserError
from models.hub.load import load_causal_lm, load_tokenizer
from models.roles.export import save_role
from models.roles.files import CONFIG, WEIGHTS
from models.roles.shared_base import SharedBase
from tests.conftest import ADAPTER, make_base, randomise, tiny_lm, word_tokenizer

CPU = torch.device("cpu")
OWN = """
import pathlib
pathlib.Path("owned").write_text("x")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Mine(LlamaForCausalLM): pass
class MyConfig(LlamaConfig): model_type = "llama"
class MyTokenizer(PreTrainedTokenizerFast): pass
"""


@pytest.fixture(autouse=True)
def nothing_is_owned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "owned").exists()


@pytest.fixture
def base() -> SharedBase:
    return make_base()


@pytest.fixture
def adapter(base: SharedBase, tmp_path: Path) -> Path:
    base.add_role("sft", ADAPTER, seed=0)
    randomise(base, "sft", 1)
    save_role(base, "sft", tmp_path / "a")
    return tmp_path / "a/adapter"


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


BOMB = "(a+)+$" + "(x*)*" * 20
ADAPTERS: dict[str, tuple[dict[str, Any], str]] = {
    "pattern of ranks": ({"rank_pattern": {BOMB: 4}}, "is a pattern"),
    "pattern of alphas": ({"alpha_pattern": {BOMB: 4}}, "is a pattern"),
    "pattern of layers": ({"layers_pattern": [BOMB], "layers_to_transform": [0]}, "is a pattern"),
    "a rank of a billion": ({"r": 10**9}, "does not fit the weights"),
    "a rank of a billion by pattern": ({"rank_pattern": {"q_proj": 10**9}}, "does not fit the weights"),
    "no rank": ({"r": 0}, "r:"),
    "a rank that is text": ({"r": "8"}, "r:"),
    "not finite": ({"lora_alpha": float("nan")}, "lora_alpha"),
    "biases of the base": ({"bias": "all"}, "would change the shared base"),
    "modules of the base": ({"modules_to_save": ["lm_head"]}, "would change the shared base"),
    "tokens of the base": ({"trainable_token_indices": [1]}, "no rows for these tokens"),
    "layers copied": ({"layer_replication": [[0, 2], [0, 2]]}, "plain LoRA"),
    "a module to import": ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "plain LoRA"),
    "another method": ({"peft_type": "OFT"}, "trivet reads LORA"),
    "virtual tokens without a number": ({"peft_type": "PROMPT_TUNING"}, "num_virtual_tokens: Field required"),
    "virtual tokens without vectors": (
        {"peft_type": "PREFIX_TUNING"}
        | dict.fromkeys(("num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads"), 2),
        "virtual tokens are a matrix 'prompt_embeddings'",
    ),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_hostile_adapter_settings(name: str, base: SharedBase, adapter: Path) -> None:
    before = base.base_fingerprint()
    values, told = ADAPTERS[name]
    change(adapter / CONFIG, **values)
    started = time.process_time()
    with pytest.raises(UserError, match=told) as error:
        base.load_role("x", adapter.parent)
    assert CONFIG in str(error.value) and time.process_time() - started < 2
    assert base.base_fingerprint() == before and "x" not in base.roles


def test_what_an_adapter_says_of_classes_and_bases_is_not_followed(base: SharedBase, adapter: Path) -> None:
    auto = {"base_model_class": "Mine", "parent_library": "evil"}
    change(adapter / CONFIG, auto_mapping=auto, base_model_name_or_path="/elsewhere", revision="x")
    change(adapter / CONFIG, megatron_core="evil")
    base.load_role("x", adapter.parent)
    assert base.parameters_of("x").keys()
    assert base.adapters["x"].base_model_name_or_path is None


def test_a_targets_pattern_is_not_run_and_the_weights_say_what_it_meant(base: SharedBase, adapter: Path) -> None:
    change(adapter / CONFIG, target_modules=BOMB)
    base.load_role("x", adapter.parent)
    ours, theirs = base.adapter_state("sft"), base.adapter_state("x")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def damaged(file: Path, kind: str) -> None:
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    first, second = [k for k in header if k != "__metadata__"][:2]
    if kind == "huge header":
        file.write_bytes(struct.pack("<Q", 2**62) + data[8:])
    elif kind == "long header":
        file.write_bytes(struct.pack("<Q", len(data)) + data[8:])
    elif kind == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "pickle":
        file.write_bytes(b"\x80\x04cposix\nsystem\n(S'touch owned'\ntR.")
    else:
        if kind == "overlap":
            header[second]["data_offsets"] = header[first]["data_offsets"]
        elif kind == "negative":
            header[first]["data_offsets"] = [-8, 8]
        elif kind == "unknown type":
            header[first]["dtype"] = "OBJECT"
        elif kind == "shape":
            header[first]["shape"] = [2**40, 2**40]
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


KINDS = ["huge header", "long header", "cut", "empty", "pickle", "overlap", "negative", "unknown type", "shape"]


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_safetensors(kind: str, base: SharedBase, adapter: Path, folder: Path) -> None:
    damaged(adapter / WEIGHTS, kind)
    with pytest.raises(UserError, match="not a readable safetensors"):
        base.load_role("x", adapter.parent)
    damaged(folder / "model.safetensors", kind)
    with pytest.raises(UserError, match="not a readable safetensors"):
        load_causal_lm(str(folder), None, torch.float32, CPU)


@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        (lambda t: t.to(torch.int64), "int64"),
        (lambda t: torch.full_like(t, float("nan")), "not finite"),
        (lambda t: t.flatten(), "another shape"),
    ],
)
def test_adapter_tensors_that_are_no_weights(
    tensor: Callable[[torch.Tensor], torch.Tensor], told: str, base: SharedBase, adapter: Path
) -> None:
    tensors = load_file(adapter / WEIGHTS)
    first = sorted(tensors)[-1]
    save_file(tensors | {first: tensor(tensors[first]).contiguous()}, adapter / WEIGHTS)
    with pytest.raises(UserError, match=told):
        base.load_role("x", adapter.parent)


def test_devices_and_pipes_are_not_opened(base: SharedBase, adapter: Path) -> None:
    for name in (WEIGHTS, CONFIG):
        (adapter / name).rename(adapter / "aside")
        os.mkfifo(adapter / name)
        with pytest.raises(UserError, match=re.escape(name)):
            base.load_role("x", adapter.parent)
        (adapter / name).unlink()
        (adapter / "aside").rename(adapter / name)


# -- model folders ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    tiny_lm().save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    (folder / "mine.py").write_text(OWN)
    return folder


def test_a_folder_with_code_of_its_own_loads_without_it_or_not_at_all(folder: Path) -> None:
    mapping: dict[str, Any] = {"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.Mine"}
    mapping["AutoTokenizer"] = ["mine.MyTokenizer", "mine.MyTokenizer"]
    change(folder / "config.json", auto_map=mapping, trust_remote_code=True)
    change(folder / "tokenizer_config.json", auto_map=mapping, trust_remote_code=True)
    assert type(load_causal_lm(str(folder), None, torch.float32, CPU)).__name__ == "LlamaForCausalLM"
    assert load_tokenizer(str(folder))("w1").input_ids
    change(folder / "config.json", model_type="mine")
    change(folder / "tokenizer_config.json", tokenizer_class="MyTokenizer")
    for load in (lambda: load_causal_lm(str(folder), None, torch.float32, CPU), lambda: load_tokenizer(str(folder))):
        with pytest.raises(UserError, match="cannot be loaded"):
            load()


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "layers without end": ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    "a vocabulary of a trillion": ({"vocab_size": 10**12}, "do not fit weights"),
    "a width of a trillion": ({"hidden_size": 10**12}, "do not fit weights"),
    "code for attention": ({"attn_implementation": "someone/kernel"}, "code from elsewhere"),
    "code for attention within": ({"text_config": {"_attn_implementation": "someone/kernel:f"}}, "code from elsewhere"),
    "more layers than weights": ({"num_hidden_layers": 3}, "lack"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_hostile_model_settings(name: str, folder: Path) -> None:
    values, told = CONFIGS[name]
    change(folder / "config.json", **values)
    started = time.process_time()
    with pytest.raises(UserError, match=told):
        load_causal_lm(str(folder), None, torch.float32, CPU)
    assert time.process_time() - started < 3


@pytest.mark.parametrize(
    ("index", "told"),
    [
        ({"weight_map": {"a": "../outside.safetensors"}}, "no safetensors file of this folder"),
        ({"weight_map": {"a": "/etc/passwd"}}, "no safetensors file of this folder"),
        ({"weight_map": {"a": "x.bin"}}, "no safetensors file of this folder"),
        ({"weight_map": {"a": "none.safetensors"}}, "missing"),
        ({"weight_map": []}, "must map"),
        ({}, "must map"),
    ],
)
def test_an_index_that_points_elsewhere(index: dict[str, Any], told: str, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=told):
        load_causal_lm(str(folder), None, torch.float32, CPU)


def test_an_adapter_beside_a_model_does_not_lead_to_another_base(folder: Path) -> None:
    from models.hub.registry import check_folder

    adapter = {"peft_type": "LORA", "base_model_name_or_path": "/elsewhere"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(UserError, match="holds an adapter next to the model"):
        check_folder(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"version": "1.0"}', '{"model": {"type": "Evil"}}', "\xff"])
def test_tokenizers_that_are_none(content: str, folder: Path) -> None:
    from data.checks import check_files

    (folder / "tokenizer.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_tokenizer(str(folder))
    (folder.parent / "d.jsonl").write_text('{"prompt": "p"}\n')
    with pytest.raises(UserError, match="tokenizer"):
        check_files([folder.parent / "d.jsonl"], tokenizer=str(folder))


def with_pattern(folder: Path, pattern: str) -> None:
    """A tokenizer that is valid in every way, and splits words by this regular expression."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    path.write_text(json.dumps(content | {"pre_tokenizer": split}), encoding="utf-8")


def test_a_tokenizer_whose_pattern_backtracks_for_ever_is_refused_when_it_is_loaded(folder: Path) -> None:
    from data.checks import check_files

    with_pattern(folder, "(a|aa)+$")
    with pytest.raises(UserError, match="broke on a text of 41 characters") as told:
        load_tokenizer(str(folder))
    assert "retry-limit" in str(told.value) and "tokenizer.json" in str(told.value)
    (folder.parent / "d.jsonl").write_text('{"prompt": "p"}\n')
    with pytest.raises(UserError, match="broke on a text"):
        check_files([folder.parent / "d.jsonl"], tokenizer=str(folder))


def test_a_tokenizer_that_waits_for_its_moment_or_is_only_slow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_pattern(folder, "(x|xx)+$")
    tokenizer = load_tokenizer(str(folder))  # no text of the probe has an x
    with pytest.raises(UserError, match="broke on a text of 51 characters"):
        tokens.tokenise(tokenizer, "x" * 50 + "!")
    with pytest.raises(UserError, match="broke on a text"):
        tokens.offsets(tokenizer, "x" * 50 + "!", 1)
    with_pattern(folder, "(x|y)*(x|y)*(x|y)*b")
    tokenizer = load_tokenizer(str(folder))
    monkeypatch.setattr(tokens, "SLOW", 0.02)
    assert tokens.tokenise(tokenizer, "w1")
    with pytest.raises(UserError, match=r"took .* seconds for a text of 152 characters.*Use another base"):
        tokens.tokenise(tokenizer, "x" * 150 + "cb")


# -- the hub ----------------------------------------------------------------------------------------------------------

COMMIT = "a" * 40


@pytest.fixture
def cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A hub cache that holds one model, as the client would have left it; no network."""
    from huggingface_hub import constants

    from models.hub import download as hub

    home = tmp_path / "cache/models--some--model"
    shutil.copytree(folder, home / "snapshots" / COMMIT)
    (home / "refs").mkdir()
    (home / "refs/main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.commit_of.cache_clear()
    hub.folder_of.cache_clear()
    yield home
    hub.commit_of.cache_clear()
    hub.folder_of.cache_clear()


def test_a_hub_base_is_known_by_its_commit(cache: Path, tmp_path: Path) -> None:
    from models.hub import download as hub
    from pipelines.stages.keys import base_key

    assert base_key("some/model", tmp_path) == f"some/model@{COMMIT}" == base_key(f"some/model@{COMMIT}", tmp_path)
    lm = load_causal_lm("some/model", None, torch.float32, CPU)
    assert lm.name_or_path == "some/model" and load_tokenizer("some/model")("w1").input_ids
    newer = "b" * 40
    shutil.copytree(cache / "snapshots" / COMMIT, cache / "snapshots" / newer)
    (cache / "refs/main").write_text(newer)
    assert base_key("some/model", tmp_path).endswith(COMMIT)  # one answer a process: keys and weights agree
    hub.commit_of.cache_clear()
    assert base_key("some/model", tmp_path).endswith(newer)
    assert base_key("other/model", tmp_path) == "other/model@unknown"


def test_the_plan_says_that_a_commit_is_not_known(cache: Path, tmp_path: Path, capsys) -> None:
    from pipelines.cli import main as cli

    (tmp_path / "d.jsonl").write_text('{"prompt": "p", "completion": "c"}\n' * 3)
    (tmp_path / "r.yaml").write_text("base: nobody/nothing\ndata: {demonstrations: d.jsonl}\nstages: [sft]\n")
    assert cli.main(["plan", str(tmp_path / "r.yaml")]) == 0
    told = capsys.readouterr().out
    assert "its commit is not known" in told and " ? " in told
    assert "or name a folder" in told
    assert cli.main(["run", str(tmp_path / "r.yaml"), "--run-dir", str(tmp_path / "run")]) == 2
    assert "not in the cache" in capsys.readouterr().err
    (tmp_path / "SmolLM2-135M").mkdir()
    (tmp_path / "r.yaml").write_text("base: SmolLM2-135M\ndata: {demonstrations: d.jsonl}\nstages: [sft]\n")
    assert cli.main(["plan", str(tmp_path / "r.yaml")]) == 0
    assert "or name ./SmolLM2-135M for the folder next to the recipe" in " ".join(capsys.readouterr().out.split())
    (tmp_path / "r.yaml").write_text("base: some/model\ndata: {demonstrations: d.jsonl}\nstages: [sft]\n")
    assert cli.main(["plan", str(tmp_path / "r.yaml")]) == 0
    assert "not known, for" not in capsys.readouterr().out


def test_a_hub_folder_is_checked_like_any_other(cache: Path) -> None:
    snapshot = cache / "snapshots" / COMMIT
    (snapshot / "model.safetensors").rename(snapshot / "pytorch_model.bin")
    with pytest.raises(UserError, match="only pickled weights"):
        load_causal_lm("some/model", None, torch.float32, CPU)
    with pytest.raises(UserError, match="not in the cache"):
        load_causal_lm("nobody/nothing", None, torch.float32, CPU)
