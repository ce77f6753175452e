"""How an export is loaded without trivet: the program of its model card, which a test runs as it stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.template import Renderer
from models.hub.registry import BaseModelSpec

HEAD = 'folder = "."  # this folder, or its name on the hub\n'
ASKED = '[{"role": "user", "content": "Hello"}]'
GENERATE = f"""\
ids = tokenizer.apply_chat_template(
    {ASKED}, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
made = model.generate(**ids, generation_config=settings, max_new_tokens=64, do_sample=False)
print(tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))"""
MODEL = f"""\
from transformers import AutoModelForCausalLM, AutoTokenizer

{HEAD}tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
settings = model.generation_config
{GENERATE}"""
SCORE = """\
messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
ids = tokenizer.apply_chat_template(messages, return_dict=False)
start = len(tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False))
stops = STOPS  # a row ends with the token that ends its response
end = next((n for n in range(start, len(ids)) if ids[n] in stops), None)
row = ids[: end + 1] if end is not None else ids + stops[:1]
with torch.no_grad():
    print(model(torch.tensor([row])).logits[0, 0].item() + ADD)"""


def snippet(form: str, spec: BaseModelSpec, renderer: Renderer, score: Mapping[str, Any]) -> str:
    """The fenced program that loads a form of an export, and what is to be known before.

    Args:
        form: a key of ``model_card.FORMS``.
        spec: the base.
        renderer: whose stop tokens end a response.
        score: what a reward's score depends on; nothing of a policy.
    """
    if form == "gguf":
        return _fenced("ollama create mine -f Modelfile\nollama run mine", "bash")
    if form == "reward":
        return _fenced("trivet score . responses.jsonl", "bash")
    if form in ("model", "adapter"):
        code = MODEL if form == "model" else _adapter(spec)
        if renderer.stop_strings:  # which Transformers cannot find without it
            code = code.replace("do_sample=False)", "do_sample=False, tokenizer=tokenizer)")
        head = "The adapter names its base; put another place of it in `base`.\n\n" if form == "adapter" else ""
        return head + _fenced(code)
    code = SCORE.replace("STOPS", str(list(renderer.stop_ids))).replace("ADD", repr(score["add_to_classifier"]))
    head = f"""\
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

{HEAD}tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
"""
    return _fenced(head + code)


def _adapter(spec: BaseModelSpec) -> str:
    revision = f', revision="{spec.revision}"' if spec.revision else ""
    return f"""\
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

{HEAD}base = PeftConfig.from_pretrained(folder).base_model_name_or_path
tokenizer = AutoTokenizer.from_pretrained(folder)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base{revision}), folder)
settings = model.generation_config = GenerationConfig.from_pretrained(folder)  # instead of the base's own
{GENERATE}"""


def _fenced(code: str, language: str = "python") -> str:
    return f"```{language}\n{code}\n```"
