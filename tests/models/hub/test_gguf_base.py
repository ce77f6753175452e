"""GGUF files as bases: the folder that is made computes and splits text as the file does, or the file is refused."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.common.errors import UserError
from models.hub.gguf_base import import_gguf
from models.hub.gguf_format import SAME_SPLITS, in_halves, neighbouring, rope_factors
from models.hub.licences import licence_of
from models.hub.registry import resolve_base
from models.roles.gguf_file import write_gguf
from pipelines.cli.main import main
from pipelines.run.pipeline import Pipeline
from tests.support.gguf import TEXTS, by_llama_cpp, byte_tokenizer, greedy, sized

gguf = pytest.importorskip("gguf")
SCALED = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def written(file: Path, lm: Any, tokenizer: Any, kind: str = "f32", stops: tuple[int, ...] = (0, 341)) -> Path:
    write_gguf(lm, tokenizer, file, kind=kind, name="tiny", stops=list(stops))
    return file


def changed(file: Path, to: Path, change: dict[str, Any], drop: tuple[str, ...] = (), extra: Any = None) -> Path:
    """A copy with other fields, without some tensors, or with one more."""
    reader = gguf.GGUFReader(file)
    family = reader.fields["general.architecture"].contents()
    fields = {k: (f.contents(), f.types) for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    writer = gguf.GGUFWriter(to, change.get("general.architecture", family))
    for key, (value, types) in fields.items():
        if key == "general.architecture" or change.get(key, "") is None:
            continue
        sub = types[1] if len(types) > 1 else None
        writer.add_key_value(key, change.get(key, value), types[0], sub)
    kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING"}
    for key in change.keys() - fields.keys() - {"general.architecture"}:
        if change[key] is not None:
            writer.add_key_value(key, change[key], gguf.GGUFValueType[kinds[type(change[key])]])
    for tensor in reader.tensors:
        if tensor.name not in drop:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    if extra is not None:
        writer.add_tensor(*extra)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return to


def logits(lm: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = lm(torch.tensor([ids])).logits
    return found


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "biases", "llama3"])
def test_what_was_written_is_read_back(tmp_path: Path, family: str, tied: bool) -> None:
    """Same logits and tokens, template, stops, and padding; q and k of Llama's turned back, with their biases."""
    tokenizer = byte_tokenizer("qwen2" if family.startswith("qwen") else "llama-bpe")
    more: dict[str, Any] = {"initializer_range": 0.1, "tie_word_embeddings": tied}
    more |= {"attention_bias": True} if family == "biases" else {}
    more |= {"rope_parameters": SCALED, "head_dim": 16} if family == "llama3" else {}
    lm = sized(family if family[:4] in ("mist", "qwen") else "llama", tokenizer, **more)
    with torch.no_grad():
        for name, p in lm.named_parameters():
            if name.endswith("bias"):
                p.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    import_gguf(written(tmp_path / "m.gguf", lm, tokenizer), tmp_path / "base")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["base", "m.gguf"]
    read, own = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"),
        AutoTokenizer.from_pretrained(tmp_path / "base"),
    )
    for text in (*TEXTS[:3], "<|user|>12345 foxes<end><|assistant|>\n\n x"):
        ids = tokenizer(text)["input_ids"]
        assert own(text)["input_ids"] == ids and own.decode(ids) == tokenizer.decode(ids)
        torch.testing.assert_close(logits(read, ids), logits(lm, ids), atol=1e-5, rtol=1e-5)
    assert own.chat_template == tokenizer.chat_template
    assert (own.eos_token, own.pad_token, own.bos_token) == ("<end>", "<end>", None)
    assert read.generation_config.eos_token_id == [0, 341] and read.config.eos_token_id == 0
    assert own.convert_tokens_to_ids("<|assistant|>") == 341 and own.added_tokens_decoder[341].special
    assert (read.lm_head.weight is read.model.embed_tokens.weight) == tied
    assert read.config.rms_norm_eps == 1e-6


@pytest.mark.parametrize(("kind", "dtype"), [("f16", "F16"), ("bf16", "BF16"), ("q8_0", "F32")])
def test_numbers_stay_exactly_those_of_the_file(tmp_path: Path, kind: str, dtype: str) -> None:
    tokenizer = byte_tokenizer()
    lm = sized("llama", tokenizer, initializer_range=0.1)
    file = written(tmp_path / "m.gguf", lm, tokenizer, kind)
    import_gguf(file, tmp_path / "base")
    header = (tmp_path / "base/model.safetensors").read_bytes()
    assert json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["model.norm.weight"]["dtype"] == dtype
    stored = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(file).tensors}
    read = load_file(tmp_path / "base/model.safetensors")
    up = torch.tensor(stored["blk.1.ffn_up.weight"])
    assert torch.equal(read["model.layers.1.mlp.up_proj.weight"].float(), up)
    q = in_halves(torch.tensor(stored["blk.1.attn_q.weight"]), 4)
    assert torch.equal(read["model.layers.1.self_attn.q_proj.weight"].float(), q)
    import_gguf(file, tmp_path / "small", torch.bfloat16)
    assert load_file(tmp_path / "small/model.safetensors")["model.norm.weight"].dtype == torch.bfloat16


def test_halves_are_the_inverse_of_neighbours() -> None:
    rows = torch.tensor([0.0, 2, 1, 3, 4, 6, 5, 7])[:, None]
    assert in_halves(rows, 2).flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    weight = torch.randn(24, 3)
    assert torch.equal(in_halves(neighbouring(weight, 3), 3), weight)


def test_the_factors_of_llama_3_by_hand() -> None:
    """Waves of 2 pi, 6283 and 6.28e6 positions on a context of 8192: short, between, and long ones.

    Between 8192 / 4 and 8192: smooth = (8192 / 6283.19 - 1) / 3 = 0.101267, 1 / (0.898733 / 8 + 0.101267) = 4.6821.
    """
    found = rope_factors(1e9, 6, 8.0, 1.0, 4.0, 8192)
    assert found.tolist() == pytest.approx([1.0, 4.6821, 8.0], rel=2e-4)


@pytest.mark.parametrize("family", ["llama", "llama3"])
def test_llama_cpp_and_the_read_base_say_the_same(tmp_path: Path, family: str) -> None:
    """With Llama 3.1's scaling on a short context, where it changes what is said; by llama.cpp, not by our reader."""
    tokenizer = byte_tokenizer("llama-bpe")
    scaled = SCALED | {"original_max_position_embeddings": 8192, "factor": 32.0}
    more: dict[str, Any] = {"rope_parameters": scaled} if family == "llama3" else {}
    lm = sized("llama", tokenizer, initializer_range=0.2, head_dim=32, **more)
    file = written(tmp_path / "m.gguf", lm, tokenizer)
    import_gguf(file, tmp_path / "base")
    read, own = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"),
        AutoTokenizer.from_pretrained(tmp_path / "base"),
    )
    text = TEXTS[0]
    ids = own(text)["input_ids"]
    said, count = by_llama_cpp(file, text)
    assert (said, count) == (own.decode(greedy(read, ids)), len(ids))


@pytest.mark.parametrize(("name", "same"), SAME_SPLITS.items())
def test_other_names_of_a_split_are_the_same_in_llama_cpp(tmp_path: Path, name: str, same: str) -> None:
    tokenizer = byte_tokenizer(same)
    lm = sized("llama", tokenizer, initializer_range=0.1)
    plain = written(tmp_path / "p.gguf", lm, tokenizer)
    file = changed(plain, tmp_path / "m.gguf", {"tokenizer.ggml.pre": name})
    import_gguf(file, tmp_path / "base")
    own = AutoTokenizer.from_pretrained(tmp_path / "base")
    for text in (TEXTS[1], "We'LL do 1234 (x)\n\n  y= \u00e9t\u00e9 \u4f60\u597d!!\r\n z"):
        ids = own(text)["input_ids"]
        assert ids == tokenizer(text)["input_ids"]
        assert by_llama_cpp(file, text, 4)[1] == len(ids)


def test_a_real_vocabulary_of_sentencepiece(tmp_path: Path, shared: Path) -> None:
    source = shared / "models" / "stories260K"
    lm = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(source)
    import_gguf(written(tmp_path / "m.gguf", lm, tokenizer, stops=(2,)), tmp_path / "base")
    read, own = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"),
        AutoTokenizer.from_pretrained(tmp_path / "base"),
    )
    for text in ("Once upon a time, Lily", "The  dog's 123 bones", "h\u00e9llo w\u00f6rld\n\nnew", "a</s>the<s> dog"):
        ids = tokenizer(text)["input_ids"]
        assert own(text)["input_ids"] == ids and own.decode(ids) == tokenizer.decode(ids)
        torch.testing.assert_close(logits(read, ids), logits(lm, ids), atol=1e-5, rtol=1e-5)
    assert (own.bos_token, own.eos_token, own.unk_token) == ("<s>", "</s>", "<unk>")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = byte_tokenizer()
    return written(tmp_path_factory.mktemp("plain") / "m.gguf", sized("llama", tokenizer), tokenizer)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"general.architecture": "gemma3"}, "its architecture is 'gemma3'; llama, qwen2, qwen3 can be read"),
        ({"tokenizer.ggml.pre": "tekken"}, r"split by 'tekken' .tokenizer\.ggml\.pre., which is not known"),
        ({"tokenizer.ggml.pre": None}, "split by 'None'"),
        ({"tokenizer.ggml.model": "t5"}, "of the kind 't5'"),
        ({"llama.expert_count": 8}, r"llama\.expert_count: is a setting that is not known here .8"),
        ({"llama.rope.scaling.type": "yarn"}, r"rope\.scaling\.type: 'yarn'"),
        ({"llama.rope.dimension_count": 4}, r"rope\.dimension_count: 4, and a head has 8 numbers"),
        ({"llama.attention.causal": False}, "is an encoder"),
        ({"llama.embedding_length": None}, r"llama\.embedding_length: is missing"),
        (
            {"llama.feed_forward_length": 32},
            r"blk\.0\.ffn_gate\.weight: is of the shape .64, 32., and should be .32, 32",
        ),
        ({"llama.block_count": 3}, r"it has no tensor 'blk\.2\.attn_q\.weight'"),
        ({"llama.block_count": 1}, r"its tensor 'blk\.1\..*' belongs to nothing"),
        ({"tokenizer.ggml.eos_token_id": 9999}, r"eos_token_id: 9999 is beyond its \d+ tokens"),
        ({"split.count": 2}, "it is one of 2 parts"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_would_be_another_model_is_refused(
    tmp_path: Path, plain: Path, change: dict[str, Any], words: str
) -> None:
    file = changed(plain, tmp_path / "odd.gguf", change)
    with pytest.raises(UserError, match=words) as found:
        import_gguf(file, tmp_path / "base")
    assert str(file) in str(found.value)
    assert [f.name for f in tmp_path.iterdir()] == ["odd.gguf"]


def test_factors_of_no_known_scaling_a_tensor_too_many_and_damage_are_refused(tmp_path: Path, plain: Path) -> None:
    extra = ("rope_freqs.weight", torch.full((4,), 3.0).numpy())
    with pytest.raises(UserError, match="scales frequencies otherwise than Llama"):
        import_gguf(changed(plain, tmp_path / "a.gguf", {}, extra=extra), tmp_path / "base")
    extra = ("blk.0.ffn_up.bias", torch.ones(64).numpy())
    with pytest.raises(UserError, match=r"its tensor 'blk\.0\.ffn_up\.bias' belongs to nothing"):
        import_gguf(changed(plain, tmp_path / "b.gguf", {}, extra=extra), tmp_path / "base")
    (tmp_path / "c.gguf").write_bytes(plain.read_bytes()[:700])
    (tmp_path / "d.gguf").write_bytes(b"no GGUF at all")
    for name in ("c", "d"):
        with pytest.raises(UserError, match="is no readable GGUF file"):
            import_gguf(tmp_path / f"{name}.gguf", tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_a_recipe_names_the_file_or_its_folder_and_it_is_read_once(
    tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIVET_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    file = changed(plain, tmp_path / "model/tiny.gguf", {"general.license": "apache-2.0"})
    first = resolve_base("model/tiny.gguf", base_dir=tmp_path)
    assert "read tiny.gguf: llama" in capsys.readouterr().err
    place = Path(first.source)
    assert first.name == "tiny" and place.parent == tmp_path / "cache/bases"
    licence = licence_of(first)
    assert licence is not None and licence.hub_id == "apache-2.0"
    made = (place / "config.json").stat().st_mtime_ns
    os.utime(place, (0, 0))
    assert resolve_base("model", base_dir=tmp_path).source == first.source
    assert place.stat().st_mtime > time.time() - 60  # used now, as `trivet gc --cache` sees it
    assert (place / "config.json").stat().st_mtime_ns == made and not capsys.readouterr().err
    (tmp_path / "models.yaml").write_text("mine: {source: ./model/tiny.gguf}\n")
    assert resolve_base("mine", base_dir=tmp_path).source == first.source
    rows = [{"prompt": f"tell {n}", "completion": f"a fox and {n} whales"} for n in range(8)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "base": "model/tiny.gguf",
        "stages": ["sft"],
        "data": {"demonstrations": "d.jsonl", "held_out": 0.0},
        "adapter": {"rank": 2, "alpha": 4},
        "runtime": {"device": "cpu", "threads": 1},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    Pipeline.from_recipe(tmp_path / "recipe.yaml", run_dir=tmp_path / "run").run()
    named = json.loads((tmp_path / "run/sft/adapter/adapter_config.json").read_text())["base_model_name_or_path"]
    assert named  # an adapter on what was read
    changed(plain, tmp_path / "model/other.gguf", {})
    with pytest.raises(UserError, match=r"holds 2 GGUF files .other\.gguf, tiny\.gguf.; name the one"):
        resolve_base("model", base_dir=tmp_path)
    # another file of this name is another base
    changed(plain, file, {"general.license": "mit"})
    assert resolve_base("model/tiny.gguf", base_dir=tmp_path).source != first.source


def test_the_command_reads_into_a_folder_of_ones_own(
    tmp_path: Path, plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "mine"
    assert main(["import", str(plain), "--to", str(to), "--dtype", "bf16"]) == 0
    told = capsys.readouterr()
    assert told.out.strip() == str(to) and "in F32, written as bfloat16" in told.err
    assert load_file(to / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
    assert resolve_base("mine", base_dir=tmp_path).source == str(to)
    assert main(["import", str(plain), "--to", str(to)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["import", str(tmp_path / "x.gguf"), "--to", str(tmp_path / "x")]) == 2
    assert "no GGUF file there" in capsys.readouterr().err
    assert main(["import", str(plain), "--to", str(tmp_path / "x"), "--dtype", "int9"]) == 2
    assert "--dtype int9: no such precision" in capsys.readouterr().err


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    lm = sized("llama", tokenizer)
    with torch.no_grad():
        lm.model.layers[0].mlp.up_proj.weight[0, 0] = torch.inf
    with pytest.raises(UserError, match=r"blk\.0\.ffn_up\.weight: holds numbers that are not finite"):
        import_gguf(written(tmp_path / "m.gguf", lm, tokenizer), tmp_path / "base")
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")  # the folder can be written: it is the file
