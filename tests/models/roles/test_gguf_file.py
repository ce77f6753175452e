"""GGUF files: llama.cpp reads them and responds as Transformers does; what it would compute otherwise is refused."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from data.common.errors import UserError
from models.hub.gguf_format import FAMILIES, neighbouring
from models.roles.gguf_file import TYPES, family_of, modelfile, vocabulary, write_gguf
from pipelines.export.stage import export_stage
from pipelines.run.open_run import open_run, stage_folder
from pipelines.run.pipeline import Pipeline
from tests.conftest import tiny_lm, word_tokenizer
from tests.support.gguf import BYTES, SPLITTERS, TEXTS, by_llama_cpp, byte_tokenizer, greedy, sized
from tests.support.recipes import ROOT


def largest_error(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """By each number's place: half a step of the levels of its block of 32, or a whole one where the levels reach
    farther on one side of zero than on the other. Scales are fp16."""
    if kind[0] != "q":
        return weight.abs() * {"f32": 0.0, "f16": 2**-11, "bf16": 2**-8}[kind] + (kind == "f16") * 2**-24
    blocks = weight.reshape(-1, 32)
    largest = blocks.abs().amax(1, keepdim=True)
    wide = blocks.amax(1, keepdim=True) - blocks.amin(1, keepdim=True)
    steps = {"q8_0": largest / 127 / 2, "q5_0": largest / 16, "q4_0": largest / 8, "q5_1": wide / 62, "q4_1": wide / 30}
    slack = largest * 2**-9  # of the scale and of the smallest number
    return (steps[kind] + slack).expand_as(blocks).reshape(weight.shape)


@pytest.mark.parametrize("kind", TYPES)
def test_the_first_32_tokens_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    """In fp32; the other types are read, and a matrix is off by no more than they say."""
    tokenizer = byte_tokenizer()
    lm = sized("llama", tokenizer, initializer_range=0.1)
    write_gguf(lm, tokenizer, tmp_path / "m.gguf", kind=kind, name="tiny", stops=[0])
    ids = tokenizer("once upon a fox")["input_ids"]
    said, count = by_llama_cpp(tmp_path / "m.gguf", "once upon a fox")
    assert count == len(ids) and said
    if kind == "f32":
        assert said == tokenizer.decode(greedy(lm, ids))
    gguf = pytest.importorskip("gguf")
    stored = {t.name: t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    tensor = stored["blk.0.ffn_down.weight"]
    values = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
    expected = lm.model.layers[0].mlp.down_proj.weight.detach()
    assert (values - expected).abs().le(largest_error(expected, kind)).all()
    assert stored["token_embd.weight"].tensor_type.name == ("Q8_0" if kind[0] == "q" else kind.upper())
    assert stored["blk.0.ffn_down.weight"].tensor_type.name == kind.upper()


@pytest.mark.parametrize("family", [*FAMILIES, "llama with biases", "untied"])
def test_each_family_is_read(tmp_path: Path, family: str) -> None:
    tokenizer = byte_tokenizer()
    more: dict[str, Any] = {"initializer_range": 0.1}
    if family == "llama with biases":
        more["attention_bias"] = True
    if family == "untied":
        more["tie_word_embeddings"] = False
    lm = sized(family if family in FAMILIES else "llama", tokenizer, **more)
    with torch.no_grad():
        for name, p in lm.named_parameters():
            if name.endswith("bias"):
                p.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    write_gguf(lm, tokenizer, tmp_path / "m.gguf", kind="f32", name="tiny", stops=[0])
    text = "It didn't like"
    said, _ = by_llama_cpp(tmp_path / "m.gguf", text)
    assert said == tokenizer.decode(greedy(lm, tokenizer(text)["input_ids"]))


@pytest.mark.parametrize("split", SPLITTERS)
def test_llama_cpp_splits_text_as_the_tokenizer_does(tmp_path: Path, split: str) -> None:
    """Where a word is split elsewhere, another number of tokens comes out, and another response."""
    tokenizer = byte_tokenizer(split)
    assert vocabulary(tokenizer, 400).split == split
    lm = sized("llama", tokenizer, initializer_range=0.1)
    write_gguf(lm, tokenizer, tmp_path / "m.gguf", kind="f32", name="tiny", stops=[0])
    for text in (TEXTS[0], TEXTS[1], "<|user|>12345 foxes<end><|assistant|>"):
        ids = tokenizer(text)["input_ids"]
        said, count = by_llama_cpp(tmp_path / "m.gguf", text, 8)
        assert (said, count) == (tokenizer.decode(greedy(lm, ids, 8)), len(ids)), text


def test_neighbours_are_interleaved() -> None:
    rows = torch.arange(8.0)[:, None]
    assert neighbouring(rows, 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert neighbouring(torch.arange(4.0), 1).tolist() == [0, 2, 1, 3]


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        ("gpt2", {}, "'gpt2' cannot be written; llama, mistral, qwen2, qwen3 can"),
        ("mistral", {"sliding_window": 8}, r"sliding_window: llama\.cpp computes this 'mistral' otherwise"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope_parameters"),
        ("llama", {"mlp_bias": True}, "mlp_bias"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(family: str, change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        family_of(tiny_lm(family, **change).config)


def test_tokenizers_that_it_does_not_know_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="no form for a tokenizer of kind 'WordLevel'"):
        vocabulary(word_tokenizer(), 40)
    odd = byte_tokenizer()
    odd.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), BYTES])
    with pytest.raises(UserError, match=r"no name for how this tokenizer splits text .Whitespace and ByteLevel"):
        vocabulary(odd, 400)
    odd.backend_tokenizer.pre_tokenizer = BYTES
    odd.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(UserError, match="behind Lowercase"):
        vocabulary(odd, 400)
    bare = Tokenizer(models.BPE({"<unk>": 0, "a": 1}, [], unk_token="<unk>", byte_fallback=True))
    bare.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    with pytest.raises(UserError, match="tokens for 0 of 256 bytes"):
        vocabulary(PreTrainedTokenizerFast(tokenizer_object=bare), 2)


def sentencepiece(normalizer: Any = None, split: Any = None, more: Any = ()) -> Any:
    """Bytes, a few letters and what is joined of them."""
    own = ["<unk>", "<s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", "a", "b", "ab", *more]
    words = {text: i for i, text in enumerate(own)}
    made = Tokenizer(models.BPE(words, [("a", "b")], unk_token="<unk>", byte_fallback=True))
    if normalizer is not None:
        made.normalizer = normalizer
    if split is not None:
        made.pre_tokenizer = split
    return PreTrainedTokenizerFast(tokenizer_object=made)


def test_a_blank_before_the_first_text_alone_is_refused_and_before_all_is_written() -> None:
    """llama.cpp puts one before whatever follows a special token as well."""
    every = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    assert vocabulary(sentencepiece(split=every), 270).model == "llama"
    with pytest.raises(UserError, match=r"no name for how this tokenizer splits text .Metaspace"):
        vocabulary(sentencepiece(split=pre_tokenizers.Metaspace(prepend_scheme="first", split=False)), 270)


def test_a_token_that_llama_cpp_would_join_and_the_tokenizer_does_not_is_refused() -> None:
    blanks = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    assert vocabulary(sentencepiece(blanks), 270).scores[261] == 0.0
    with pytest.raises(UserError, match=r"would join .* the token 'ba', and the tokenizer does not"):
        vocabulary(sentencepiece(blanks, more=["ba"]), 270)


def test_the_kinds_of_tokens() -> None:
    found = vocabulary(byte_tokenizer(), 400)
    assert found.model == "gpt2" and found.tokens[0] == "<end>" and found.kinds[0] == 3
    last = max(i for i, kind in enumerate(found.kinds) if kind == 1)
    assert found.tokens[last + 1] == "<|user|>" and found.kinds[last + 1] == 3
    assert found.tokens[-1] == "[PAD399]" and found.kinds[-1] == 5
    assert found.merges[0].count(" ") == 1 and not found.scores


def test_ollamas_description_has_template_stops_and_sampling() -> None:
    def render(messages: Any) -> str:
        return "".join(f"<{m['role']}>{m['content']}</>" for m in messages) + "<assistant>"

    text = modelfile("model.gguf", render, ["</>", 'a"b'])
    assert text.splitlines() == [
        "FROM ./model.gguf",
        'TEMPLATE """{{ if .System }}<system>{{ .System }}</><user>{{ else }}<user>{{ end }}{{ .Prompt }}</><assistant>'
        '{{ .Response }}"""',
        'PARAMETER stop "</>"',
        'PARAMETER stop "a\\"b"',
        "PARAMETER temperature 1",
        "PARAMETER top_k 0",
        "PARAMETER top_p 1",
        "PARAMETER repeat_penalty 1",
    ]

    def without_system(messages: Any) -> str:
        if messages[0]["role"] == "system":
            raise UserError("no system message here")
        return f"Q: {messages[0]['content']}\nA:"

    assert 'TEMPLATE """Q: {{ .Prompt }}\nA:{{ .Response }}"""' in modelfile("m", without_system, [])


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tuned_run(tmp_path_factory.mktemp("tuned"))


def tuned_run(folder: Path, width: int = 32, **runtime: Any) -> Path:
    """A run whose base has a byte-level tokenizer, tuned for a moment."""
    tokenizer = byte_tokenizer()
    sized("llama", tokenizer, initializer_range=0.1, hidden_size=width).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    rows = [{"prompt": f"tell {n}", "completion": f"a fox and {n} whales"} for n in range(16)]
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "name": "foxes",
        "base": str(folder / "base"),
        "stages": ["sft"],
        "data": {"demonstrations": str(folder / "d.jsonl"), "held_out": 0.0},
        "adapter": {"rank": 4, "alpha": 8},
        "sft": {"epochs": 6, "learning_rate": 3e-3, "batch": 8},
        "runtime": {"device": "cpu", "threads": 1} | runtime,
    }
    Pipeline.from_recipe(recipe, run_dir=folder / "run").run()
    return folder / "run"


def test_an_exported_stage_responds_in_llama_cpp_as_in_the_run(tmp_path: Path, tuned: Path) -> None:
    to = export_stage(tuned, "sft", tmp_path / "out", gguf="f32")
    assert sorted(f.name for f in to.iterdir()) == ["Modelfile", "README.md", "model.gguf"]
    pipeline = open_run(tuned)
    base, renderer = pipeline.loaded.base(), pipeline.loaded.renderer()
    pipeline.loaded.load("sft", "sft", stage_folder(pipeline, "sft"))
    prompt = renderer.prompt_ids([{"role": "user", "content": "tell 3"}])
    text = base.tokenizer.decode(prompt)
    assert text == "<|user|>tell 3<end><|assistant|>"
    with base.role("sft") as view:
        ids = greedy(view.lm, prompt)
    assert by_llama_cpp(to / "model.gguf", text) == (base.tokenizer.decode(ids, skip_special_tokens=True), len(prompt))
    template = "{{ else }}<|user|>{{ end }}{{ .Prompt }}<end><|assistant|>{{ .Response }}"
    assert template in (to / "Modelfile").read_text()
    assert 'PARAMETER stop "<end>"' in (to / "Modelfile").read_text()


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes (the extra nf4)")
def test_the_adapter_of_a_base_in_four_bits_stands_on_the_base_as_it_was_given(tmp_path: Path) -> None:
    run = tuned_run(tmp_path, 64, quantize="nf4")
    to = export_stage(run, "sft", tmp_path / "out", gguf="f32")
    gguf = pytest.importorskip("gguf")
    name, stored = "model.layers.0.mlp.up_proj", {t.name: t for t in gguf.GGUFReader(to / "model.gguf").tensors}
    given = load_file(tmp_path / "base/model.safetensors")[f"{name}.weight"]
    adapter = load_file(run / "sft/adapter/adapter_model.safetensors")
    a, b = (adapter[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
    assert (b @ a).abs().max() > 1e-4
    torch.testing.assert_close(
        torch.tensor(stored["blk.0.ffn_up.weight"].data), given + 2.0 * b @ a, atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"gguf": "q9"}, "--gguf q9: one of f32, f16, bf16, q8_0, q5_1"),
        ({"gguf": "f32", "merge": True}, "leave out --merge"),
        ({"gguf": "f32", "stage": "reward"}, "reward scores"),
    ],
)
def test_what_cannot_be_exported_so_leaves_nothing(
    tmp_path: Path, tuned: Path, more: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        export_stage(tuned, more.pop("stage", "sft"), tmp_path / "out", **more)
    assert not (tmp_path / "out").exists() and not list(tmp_path.iterdir())


def test_a_real_model_of_sentencepiece_is_read(tmp_path: Path, shared: Path) -> None:
    from transformers import AutoTokenizer

    source = shared / "models" / "stories260K"
    lm = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(source)
    write_gguf(lm, tokenizer, tmp_path / "m.gguf", kind="f32", name="stories", stops=[2])
    for text in ("Once upon a time, Lily", "The  dog's 123 bones", "h\u00e9llo w\u00f6rld\n\nnew"):
        ids = tokenizer(text)["input_ids"]
        said, count = by_llama_cpp(tmp_path / "m.gguf", text)
        whole, before = tokenizer.decode([*ids, *greedy(lm, ids)]), tokenizer.decode(ids)
        assert (said, count) == (whole[len(before) :], len(ids))


def test_the_extra_names_the_package() -> None:
    assert 'gguf = ["gguf' in (ROOT / "pyproject.toml").read_text()
