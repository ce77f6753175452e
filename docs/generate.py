"""The generated pages of the reference, from the code: ``python docs/generate.py`` writes them, a test compares them.

What a setting, option or function is called, takes and means stands in the code alone; nothing is said twice by hand.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import typer.main  # noqa: E402
from pydantic import BaseModel, JsonValue  # noqa: E402
from pydantic.fields import FieldInfo  # noqa: E402

from data.formats import FORMATS  # noqa: E402
from data.formats.columns import METADATA, REFERENCES  # noqa: E402
from data.formats.public_sets import PUBLIC_SETS, PublicSet  # noqa: E402
from data.readers.rows import CELLS  # noqa: E402
from docs.exports import exports_page  # noqa: E402
from docs.families import families_page  # noqa: E402
from pipelines.cli.main import app  # noqa: E402
from pipelines.recipe.errors import models_in  # noqa: E402
from pipelines.recipe.schema import Recipe  # noqa: E402

FOLDER = ROOT / "docs" / "reference"
NOTE = "<!-- Written by `make reference` from the code; do not edit. -->\n"
LONGEST_DEFAULT = 60
NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null", Path: "path"}
LIMITS = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}", "pattern": "matches `{}`", "min_length": "not empty"}

ABOUT_RECIPE = """\
A key such as `ppo.kl_coef` is written under its group in the recipe, or on the command line as
`--set ppo.kl_coef=0.1`. `[]` stands for each item of a list and `NAME` for a name that you choose. Only `base` and
`data` are required. [How to write a recipe](../how-to/recipe.md) says which settings matter and why they have these
defaults. `trivet plan RECIPE --settings` prints them all with the values that a recipe gives them.

An editor completes and checks the keys by [the JSON schema](recipe.schema.json). With the YAML language server (VS
Code's YAML extension, and others), begin the recipe with a line that names the schema's file or address:

    # yaml-language-server: $schema=docs/reference/recipe.schema.json

The path is relative to the recipe. The schema knows keys, types and limits; what must fit together across settings
is checked by `trivet plan` alone.
"""
ABOUT_PYTHON = """\
These names are promises: a change of one is noted in the [changelog](../../CHANGELOG.md). Everything else may
change.

The folders `data`, `models`, `reward`, `stages`, `evaluation` and `pipelines` are trivet's packages. In a folder that
has one of these itself, or a file such as `models.py`, Python would import that one instead; `from pipelines import
Pipeline` then ends in one message that names it. The command `trivet` is not disturbed.
"""
EXIT_CODES = """\
| exit code | meaning |
| --- | --- |
| 0 | done |
| 2 | the input is wrong; the message says how to fix it |
| 3 | a stage failed, or the reward model did not pass the gate |
| 130, 143 | stopped by a signal; the same command resumes |
"""


# -- settings --------------------------------------------------------------------------------------------------------


def cell(text: str) -> str:
    """Text as it may stand in a table."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def type_of(annotation: Any) -> str:
    """An annotation in plain words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_of(arguments[0])
    if origin is Literal:
        return "one of " + ", ".join(f"`{value}`" for value in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(type_of(part) for part in arguments)
    if origin is tuple:
        return f"list of {type_of(arguments[0])}"
    if origin is dict:
        return f"names, each with {type_of(arguments[1])}"
    if annotation is JsonValue:
        return "a value"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "settings"
    return NAMES[annotation]


def default_of(field: FieldInfo) -> str:
    """A field's default as it is written in YAML."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see below"
    plain = json.loads(json.dumps(value, default=lambda one: one.model_dump(mode="json", exclude_defaults=True)))
    text = json.dumps(plain, ensure_ascii=False) if not isinstance(plain, str) else plain
    return f"`{cell(text)}`" if len(text) <= LONGEST_DEFAULT else "a longer text: see the schema"


def range_of(field: FieldInfo) -> str:
    """The limits of a field's value."""
    found = [text.format(getattr(one, key)) for one in field.metadata for key, text in LIMITS.items()
             if getattr(one, key, None) is not None]  # fmt: skip
    return ", ".join(found)


def groups(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """``(dotted key, class)`` of every group of settings, the recipe first; ``[]`` and ``NAME`` stand for items."""
    yield path, model
    for key, field in model.model_fields.items():
        if field.exclude:
            continue
        here = f"{path}.{key}" if path else key
        for inner in models_in(field.annotation):
            origins = {typing.get_origin(field.annotation)} | {
                typing.get_origin(part) for part in typing.get_args(field.annotation)
            }
            item = ".NAME" if dict in origins else ""
            many = "[]" if tuple in origins or (dict in origins and "tuple" in str(field.annotation)) else ""
            yield from groups(inner, here + item + many)


def settings_of(path: str, model: type[BaseModel]) -> list[tuple[str, FieldInfo]]:
    """The settings of one group by their dotted keys."""
    return [(f"{path}.{k}" if path else k, f) for k, f in model.model_fields.items() if not f.exclude]


def recipe_page() -> str:
    """``recipe.md``: a table for each group of settings."""
    out = [
        "# All settings of a recipe",
        "",
        NOTE,
        *ABOUT_RECIPE.splitlines(),
    ]
    for path, model in groups(Recipe):
        about = " ".join((inspect.getdoc(model) or "").split()).replace("``", "`")
        out += ["", f"## {f'`{path}`' if path else 'The recipe'}", "", about, ""]
        out += ["| key | type | default | range | what it is |", "| --- | --- | --- | --- | --- |"]
        for key, field in settings_of(path, model):
            what = field.description or (inspect.getdoc(models_in(field.annotation)[0]) or "").splitlines()[0]
            row = (f"`{key}`", type_of(field.annotation), default_of(field), range_of(field), what)
            out.append("| " + " | ".join([row[0], cell(row[1]), row[2], cell(row[3]), cell(row[4])]) + " |")
    return "\n".join(out) + "\n"


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of what may stand in a recipe, short forms included."""
    schema = Recipe.model_json_schema()
    schema["properties"].pop("base_dir")
    schema = {"$schema": "http://json-schema.org/draft-07/schema#"} | schema
    known = json.loads(json.dumps(schema).replace("#/$defs/", "#/definitions/"))
    known["definitions"] = known.pop("$defs")
    places = known["definitions"]
    one_or_many(places["DataConfig"]["properties"], "demonstrations", "rankings", "prompts", "documents")
    part = {"anyOf": [{"type": "string"}, {"$ref": "#/definitions/RewardPart"}]}
    short = {"anyOf": [{"type": "string"}, {"type": "array", "items": part}]}
    reward = places["PPOConfig"]["properties"]["reward"]
    places["PPOConfig"]["properties"]["reward"] = {k: reward[k] for k in ("description", "title")} | short
    places["EvaluationConfig"]["properties"]["best_of_by"]["additionalProperties"] = short
    gate = places["RewardConfig"]["properties"]["gate"]
    places["RewardConfig"]["properties"]["gate"] = {
        "anyOf": [{"$ref": gate["$ref"]}, {"enum": [False, "off"]}],
        "description": "what the report card must show before PPO; off lets everything pass",
    }
    return known


def one_or_many(properties: dict[str, Any], *keys: str) -> None:
    """Let a text stand for a list of one, and null for an empty one."""
    for key in keys:
        listed = {k: properties[key].pop(k) for k in ("type", "items")}
        one = listed.get("items", {}).get("anyOf", [{"type": "string"}])
        properties[key]["anyOf"] = [listed, *one, {"type": "null"}]


# -- command line ----------------------------------------------------------------------------------------------------


def commands(group: Any, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Words and command of every command, those of subcommands as well."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*before, name))
        else:
            yield (*before, name), command


def parts_of(help_text: str) -> tuple[list[str], list[str]]:
    """Paragraphs of a command's help, and its examples."""
    prose, _, examples = inspect.cleandoc(help_text).partition("\b\n")
    return [" ".join(p.split()) for p in prose.split("\n\n") if p.strip()], examples.splitlines()


def command_section(words: tuple[str, ...], command: Any) -> list[str]:
    """One command: usage, help, examples, arguments and options."""
    arguments = [p for p in command.params if not p.opts[0].startswith("-")]
    options = [p for p in command.params if p.opts[0].startswith("-")]
    usage = " ".join(["trivet", *words, *(p.metavar for p in arguments), *(["[OPTIONS]"] if options else [])])
    paragraphs, examples = parts_of(command.help)
    out = ["", f"## `trivet {' '.join(words)}`", "", "```text", usage, "```"]
    for paragraph in paragraphs:
        out += ["", *textwrap.wrap(paragraph, 118, break_long_words=False, break_on_hyphens=False)]
    out += ["", "```sh", *examples, "```"] if examples else []
    if command.params:
        out += ["", "| argument or option | default | what it is |", "| --- | --- | --- |"]
    for p in [*arguments, *options]:
        name = p.metavar if p in arguments else " ".join(filter(None, [", ".join(p.opts), p.metavar]))
        default = "required" if p.required else "" if p.default in (None, False) else f"`{p.default}`"
        out.append(f"| `{cell(name)}` | {default} | {cell(p.help or '')} |")
    return out


def cli_page() -> str:
    """``cli.md``: every command with its arguments, options and examples."""
    group = typer.main.get_command(app)
    out = ["# The command line", "", NOTE]
    out += [
        "`python -m pipelines`, from a checkout, equals `trivet`. `--set`, `--input` and `--only` take several values.",
        "",
    ]
    out += EXIT_CODES.splitlines()
    for words, command in commands(group):
        out += command_section(words, command)
    return "\n".join(out) + "\n"


# -- Python ----------------------------------------------------------------------------------------------------------


def signature_of(name: str, function: Callable[..., Any]) -> str:
    """A call as it is written in the source, one parameter a line where it is long."""
    shown, star = [], False
    for p in inspect.signature(function).parameters.values():
        if p.name in ("self", "cls"):
            continue
        if p.kind is p.KEYWORD_ONLY and not star:
            shown.append("*")
            star = True
        hint = "" if p.annotation is p.empty else f": {plain(p.annotation)}"
        value = "" if p.default is p.empty else f" = {p.default.__name__ if callable(p.default) else repr(p.default)}"
        shown.append(f"{'*' if p.kind is p.VAR_POSITIONAL else ''}{p.name}{hint}{value}")
    back = inspect.signature(function).return_annotation
    result = "" if back is inspect.Signature.empty else f" -> {plain(back)}"
    line = f"{name}({', '.join(shown)}){result}"
    return line if len(line) <= 110 else "\n".join([f"{name}(", *(f"    {one}," for one in shown), f"){result}"])


def plain(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def entry(name: str, function: Any) -> list[str]:
    """One function or method with its docstring."""
    if isinstance(function, property):
        head, doc = name, function.__doc__
    else:
        head, doc = signature_of(name, function), function.__doc__
    return ["", "```python", head, "```", "", "```text", inspect.cleandoc(doc or ""), "```"]


def methods_of(cls: type) -> list[tuple[str, Any]]:
    """Public methods with a docstring, in the order of the source."""
    found = []
    for name, member in vars(cls).items():
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        function = getattr(function, "__wrapped__", function)
        if not name.startswith("_") and inspect.isfunction(function) and function.__doc__:
            found.append((name, function))
    return found


def python_page() -> str:
    """``python.md``: the promised names with their signatures and docstrings."""
    from models import BASE_MODELS, SharedBase
    from pipelines import Pipeline
    from reward.losses import ranking_loss, ranking_losses
    from stages import ppo_math

    out = ["# The Python interface", "", NOTE]
    out += [*ABOUT_PYTHON.splitlines(), ""]
    out += ["## `pipelines.Pipeline`", "", "```python", "from pipelines import Pipeline", "",
            'Pipeline.from_recipe("mine.yaml", overrides=["seed=1"]).run()', "```"]  # fmt: skip
    out += ["", "```text", inspect.cleandoc(Pipeline.__doc__ or ""), "```"]
    chosen = ("from_recipe", "plan", "run")
    for name, function in methods_of(Pipeline):
        if name in chosen:
            out += entry(f"Pipeline.{name}", function)
    out += [
        "",
        "## `models.BASE_MODELS`",
        "",
        "A dict from names to the base models that they stand for.",
        "",
    ]
    out += ["| name | source | family | licence | note |", "| --- | --- | --- | --- | --- |"]
    out += [f"| `{s.name}` | `{s.source}` | {s.family} | {s.licence} | {cell(s.note)} |" for s in BASE_MODELS.values()]
    out += ["", "## `models.SharedBase`", "", "```text", inspect.cleandoc(SharedBase.__doc__ or ""), "```"]
    for name, function in methods_of(SharedBase):
        out += entry(f"SharedBase.{name}", function)
    out += ["", "## `stages.ppo_math`", "", "```text", inspect.cleandoc(ppo_math.__doc__ or ""), "```"]
    for name, function in vars(ppo_math).items():
        if inspect.isfunction(function) and function.__module__ == ppo_math.__name__ and not name.startswith("_"):
            out += entry(f"ppo_math.{name}", function)
    out += ["", "## `reward.losses`"]
    for function in (ranking_loss, ranking_losses):
        out += entry(function.__name__, function)
    return re.sub(r"[ \t]+\n", "\n", "\n".join(out)) + "\n"


# -- methods ---------------------------------------------------------------------------------------------------------

ABOUT_METHODS = """\
`adapter.method` says how every role of a run is tuned. All of them stand on the one base, which is never changed; a
test runs every method in every stage and asks that exactly these tensors move, in fp32 on a bf16 base as well. QLoRA is
`lora` with `runtime.quantize: nf4`.

    adapter: {method: dora, rank: 16, alpha: 32}
    adapter: {method: freeze, layers: upper_half}

Adapters of two kinds (LoRA's, of which `dora`, `pissa` and `olora` are, AdaLoRA's and (IA)3's) cannot stand on one base
at a time.

By `adalora` ranks fall from `init_rank` to a mean of `rank` between the two shares of a stage's steps that `budget`
names, each role's by a budget of its own and in each stage anew: SFT, the reward stage and PPO each begin with all
ranks, of which those that went in the stage before are zeros that may come back. `orthogonality` is part of each step's
gradient and of no loss that is shown. Its scaling is PEFT's, `alpha` / `init_rank`.

By `prompt_tuning`, `p_tuning` and `prefix_tuning` every row has `virtual_tokens` before it, and nothing of the base is
adapted: see [methods of virtual tokens](../how-to/virtual_tokens.md).
"""
ABOUT_BESIDE = """\
## Embeddings, output layer and new tokens

    adapter: {modules_to_save: [embed_tokens, lm_head]}
    adapter: {new_tokens: ["<think>", "</think>"]}

`modules_to_save` trains the embeddings, the output layer or both whole, beside the adapter, by PEFT. `new_tokens` adds
tokens to the tokenizer and trains their rows alone: ids behind the vocabulary, rows that the base has to spare or,
where it has none, new ones that begin as the mean of all others. Each role has its own, in at least fp32, and the base
stays as it is. A role with a scalar head (reward, value) never reads the output layer, and trains the embeddings alone.

Where the base ties embeddings and output layer, they are one tensor for each role as well. PEFT keeps them tied for
LoRA's kinds of adapters and embeddings called `embed_tokens`; elsewhere `modules_to_save` is refused. `new_tokens` is
refused where an untied output layer has a bias, which PEFT's rows leave out, and beside `modules_to_save`, which trains
all rows.

Passes are those of Transformers' modules, without trivet's fast path. `runtime.sharding: fsdp2` and rollouts by vLLM
are refused, and so is `ppo.share_prefix_layers: false`, since no layer has the same input in all roles anyway. With
`full`, new tokens are trained as everything is; `runtime.sharding: fsdp2` is refused there too.

An exported adapter is PEFT's: its weights hold the whole modules or the rows, and its folder the tokenizer.
`AutoPeftModelForCausalLM` gives the base the rows that it lacks; in plain PEFT call
`model.resize_token_embeddings(len(tokenizer))` before. Merged, the model has all of it, tied where the base is.
"""
SHAPE: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49_152,
    "tie_word_embeddings": True,
}


def methods_page() -> str:
    """``methods.md``: what each way of tuning trains, in which stages, and what it does not go with."""
    from models.backbone.settings import METHODS, AdapterConfig
    from pipelines.stages.table import STAGES

    out = ["# Methods of tuning", "", NOTE, *ABOUT_METHODS.splitlines(), ""]
    out += ["| method | what it trains | settings that act | source |", "| --- | --- | --- | --- |"]
    for name, method in METHODS.items():
        settings = ", ".join(f"`{one}`" for one in method.settings) or "none"
        out.append(f"| `{name}` | {cell(method.trains)} | {settings} | {method.source} |")
    stages = [name for name, stage in STAGES.items() if stage.trains and stage.on_base]
    out += [
        "",
        "## Stages",
        "",
        "Numbers that a role trains, on a base of SmolLM2-135M's shape, with the defaults.",
        "",
    ]
    out += [f"| method | {' | '.join(stages)} |", "| --- |" + " ---: |" * len(stages)]
    for name in METHODS:
        count = f"{trained_numbers(AdapterConfig(method=name)):,}"
        out.append(f"| `{name}` | " + " | ".join([count] * len(stages)) + " |")
    out += [
        "",
        "PPO trains two such roles, policy and value. The reward and value heads come on top, a number for each of the",
        "base's width.",
        "",
    ]
    out += [*ABOUT_BESIDE.splitlines(), "", "## What goes with what", ""]
    out += ["| method | written as | fast path | `runtime.quantize` | `runtime.sharding` | rollouts by vLLM |"]
    out += ["| --- | --- | --- | --- | --- | --- |"]
    for name, method in METHODS.items():
        form = "a model" if method.copies else "a LoRA adapter" if method.plain else "an adapter of PEFT"
        fast = "yes" if method.plain else "to sample and score" if method.copies else "no"
        takes = ("yes" if one else "refused" for one in (method.four_bits, method.divided, method.plain))
        out.append(f"| `{name}` | {form} | {fast} | {' | '.join(takes)} |")
    return "\n".join(out) + "\n"


def trained_numbers(adapter: Any) -> int:
    """Numbers that a role trains on a base of SmolLM2-135M's shape, as PEFT or a copy makes it, without weights."""
    from peft import get_peft_model
    from transformers import LlamaConfig

    from models.backbone.architecture import linear_layers, without_weights
    from models.roles.methods import role_config, trained_of
    from models.roles.prompts import numbers_of

    lm = without_weights(LlamaConfig(**SHAPE))
    sizes, linear = {name: p.numel() for name, p in lm.named_parameters()}, linear_layers(lm)
    if adapter.tuning.copies:
        chosen = sizes.keys() if adapter.method == "full" else trained_of(lm, linear, adapter)
        return sum(sizes[name] for name in chosen)
    if adapter.tuning.virtual:
        return numbers_of(lm, adapter)
    made = get_peft_model(lm, role_config(lm, linear, None, adapter))
    found = sum(p.numel() for p in made.parameters() if p.requires_grad)
    return found // 2 if adapter.tuning.residual else found


# -- data formats ----------------------------------------------------------------------------------------------------

ABOUT_FORMATS = """\
A row's format is the one that reads most of its columns, and of two that read equally many the one that stands first
here. Nulls and blank texts count as not there. A column that the format does not read is an error if it holds text,
turns, or a number whose name says that it judges; the message names it and the line to write:

- `ignore: [column]`, in `data` for every source: the column is no part of prompts and answers (functions of yours
  still get it);
- `columns: {prompt: question}`: their column is read by our name; `{prompt: request.messages}` takes what is inside;
- a function of yours that names the column as a parameter reads it.

A row that no format fits is refused with the formats that come nearest and such a line for each. Names are read as they
stand, and where that loses something in small letters with `_` between their words (`Response A` as `response_a`). What
is a number, an address, a time or an id is no text, whatever its column is called.

Records of Argilla and of Label Studio are read as rows with a column for each field and each question, one for each
person who answered.
"""
ABOUT_SETS = """\
These have columns that would be refused, and are read by settings of their own, as if a recipe had them, if they have
the columns that they are known by and the recipe names no `columns` or `format`.
"""
ABOUT_PUBLIC = """\
Small files of public repositories, as people have them, and what each becomes. A test reads them again where they are
beside the checkout.
"""


def formats_page() -> str:
    """``formats.md``: every format with its example, what may stand beside, and how public files are read."""
    out = ["# Data formats", "", NOTE, *ABOUT_FORMATS.splitlines(), "", "## Formats", ""]
    out += ["| format | needs | reads as well | an example, and what becomes of it |", "| --- | --- | --- | --- |"]
    for name, one in FORMATS.items():
        needs = ", ".join(
            code(part) if isinstance(part, str) else " or ".join(map(code, part)) for part in one.required
        )
        needs = needs or cell(one.columns)
        example = "best, tab, worse" if CELLS in one.required else f"`{table_code(one.example)}`"
        note = f"<br>{cell(one.note)}" if one.note else ""
        out.append(f"| {name} | {needs} | {', '.join(map(code, one.optional))} | {example}{note} |")
    out += [
        "",
        "## What may stand beside",
        "",
        "Kept with the row, counted, and given to functions; `*` is any text.",
        "",
    ]
    out += ["| what it tells | columns |", "| --- | --- |"]
    out += [f"| {what} | {', '.join(map(code, names.split()))} |" for what, names in METADATA.items()]
    out.append(f"| what answers are judged by, beside a prompt | {', '.join(map(code, REFERENCES.split()))} |")
    out += ["", "## Data sets that many people have", "", *ABOUT_SETS.splitlines(), ""]
    out += ["| data set | known by | how it is read |", "| --- | --- | --- |"]
    out += [
        f"| {name} | {', '.join(map(code, one.known_by))} | {public_set(one)} |" for name, one in PUBLIC_SETS.items()
    ]
    out += ["", "## Public files", "", *ABOUT_PUBLIC.splitlines(), ""]
    out += ["| file | from | how it is read |", "| --- | --- | --- |"]
    for one in json.loads((ROOT / "docs" / "public_files.json").read_text(encoding="utf-8")):
        out.append(f"| {one['file']} | {one['repository']} {cell(one['path'])} | {public_file(one)} |")
    return "\n".join(out) + "\n"


def public_set(one: PublicSet) -> str:
    """What becomes of a row of a known set, in words, and the settings."""
    if one.refused:
        return f"refused: {cell(one.refused)}"
    columns = ", ".join(f"{our}: {their}" for our, their in one.columns.items())
    parts = [cell(one.read), f"`columns: {{{columns}}}`" if columns else ""]
    parts.append(f"not read: {', '.join(map(code, one.ignore))}" if one.ignore else "")
    return "; ".join(part for part in parts if part)


def code(name: str) -> str:
    return "a line without a header" if name == CELLS else f"`{name}`"


def table_code(row: Any) -> str:
    """A row as JSON that may stand in a table's code."""
    return json.dumps(row, ensure_ascii=False).replace("|", "\\|")


def public_file(one: dict[str, Any]) -> str:
    """What becomes of a public file, in words."""
    if "table" in one:
        return cell(one["table"])
    read = one["read"]
    kinds = [f"{n} {kind}" for kind in ("demonstrations", "rankings", "prompts", "documents") if (n := read[kind])]
    parts = [f"{', '.join(read['formats'])}: {', '.join(kinds)}"] if read["formats"] else []
    parts += [f"{read['ties']} ties"] if read["ties"] else []
    if "paste" in one:
        used = one["pasted"]
        kinds = [f"{n} {kind}" for kind in ("demonstrations", "rankings", "prompts", "documents") if (n := used[kind])]
        parts.append(f"refused; with `{one['paste']}` {', '.join(kinds)}")
    else:
        parts += [f"{n} refused: {cell(why)}" for why, n in read["refused"].items()]
    return "; ".join(parts)


def pages() -> dict[str, str]:
    """File name -> text of every generated page."""
    schema = json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n"
    return {
        "recipe.md": recipe_page(),
        "recipe.schema.json": schema,
        "cli.md": cli_page(),
        "python.md": python_page(),
        "formats.md": formats_page(),
        "methods.md": methods_page(),
        "families.md": families_page(NOTE),
        "exports.md": exports_page(NOTE),
    }


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(FOLDER / name)


if __name__ == "__main__":
    main()
