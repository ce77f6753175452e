"""A base as it can be known before its weights are read: config, tokenizer, template, stops, positions, layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peft import PeftConfig
from safetensors import SafetensorError, safe_open

from data.chat_template import TemplateChoice
from data.common.errors import UserError
from data.common.strict_json import read_object
from data.template import Renderer
from models.backbone.architecture import check_architecture, linear_layers, reach_sentence, without_weights
from models.backbone.settings import AdapterConfig
from models.hub.download import local_folder
from models.hub.limits import (
    Limits,
    check_stops,
    check_vocabulary,
    limits_of_folder,
    stop_ids_in,
    stop_strings_in,
    unused_in,
    unused_sentence,
)
from models.hub.load import add_rows, tokenizer_of
from models.hub.spec import BaseModelSpec
from models.hub.validate import check_model, module_of
from models.roles.embeddings import add as add_embeddings
from models.roles.files import ADAPTER, CONFIG, WEIGHTS
from models.roles.methods import adapter_config, trained_of


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownBase:
    """What is known of a base without its weights.

    Attributes:
        name: for messages.
        config: of its model.
        renderer: as the stages will use it.
        limits: ids and positions that it takes; None where its config names no vocabulary.
        unused: what of its generation config no stage uses (``models.hub.limits.unused_in``).
    """

    name: str
    config: Any
    renderer: Renderer
    limits: Limits | None
    unused: dict[str, Any] = field(default_factory=dict)

    def doubts(self) -> Iterator[str]:
        """Sentences about what the base's files say that a user may not expect."""
        yield from self.renderer.doubts()
        if text := unused_sentence(self.unused, self.name):
            yield text


def known_base(
    spec: BaseModelSpec,
    template: str | TemplateChoice,
    stop: Sequence[str | int] = (),
    stop_strings: Sequence[str] = (),
    reserved: int = 0,
) -> KnownBase | None:
    """A base's files read and compared; None where it is a hub id whose files are not here yet. ``reserved``: positions
    that virtual tokens take.

    Raises:
        UserError: no causal language model, damaged, or a tokenizer or stop tokens that do not fit it.
    """
    folder = local_folder(spec.source, spec.revision)
    if folder is None:
        return None
    check_model(folder)
    config = _config_of(folder, spec)
    tokenizer = tokenizer_of(spec.model_copy(update={"source": str(folder)}))
    stops, strings = _generation_stops(folder, config)
    limits = limits_of_folder(folder, spec.name)
    if limits is not None:
        limits = with_rows(limits, tokenizer) if spec.new_tokens else limits
        limits = without_positions(limits, reserved)
        check_vocabulary(limits, tokenizer)
    renderer = Renderer(
        tokenizer,
        template=template,
        stop=stop or spec.stop,
        extra_stop_ids=stops,
        stop_strings=(*stop_strings, *strings),
    )
    if limits is not None:
        check_stops(limits, renderer.stop_ids)
    file = folder / "generation_config.json"
    unused = unused_in(read_object(file)) if file.is_file() else {}
    return KnownBase(name=spec.name, config=config, renderer=renderer, limits=limits, unused=unused)


def without_positions(limits: Limits, reserved: int) -> Limits:
    """Limits of a base some of whose positions are taken by virtual tokens.

    Raises:
        UserError: they take all of them.
    """
    if not reserved or limits.positions is None:
        return limits
    if reserved >= limits.positions:
        raise UserError(
            f"adapter.virtual_tokens: {reserved} leave none of the {limits.positions} positions of base {limits.name} "
            "for a row; lower it"
        )
    return replace(limits, positions=limits.positions - reserved)


def with_rows(limits: Limits, tokenizer: Any) -> Limits:
    """Limits of a base that is given rows for new tokens when it is loaded."""
    return replace(limits, embeddings=max(limits.embeddings, len(tokenizer)))


def model_of(base: KnownBase) -> Any:
    """The base's model without weights: names and shapes.

    Raises:
        UserError: its config describes none, or one on which no role can stand.
    """
    try:
        lm = without_weights(base.config)
    except Exception as error:  # a config of impossible sizes makes the library raise anything
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"base {base.name}: its config.json describes no model ({first})") from error
    check_architecture(lm, base.name)
    return lm


def check_adapter(base: KnownBase, adapter: AdapterConfig, warn: Callable[[str], None]) -> None:
    """Whether the architecture can carry roles and the adapter finds its layers, by names and shapes alone."""
    lm = model_of(base)
    if adapter.tuning.virtual:
        adapter_settings(base, lm, adapter)
    if "targets" in adapter.tuning.settings:
        names = linear_layers(lm)
        if adapter.tuning.copies:
            trained_of(lm, names, adapter)
        else:
            adapter_settings(base, lm, adapter)
        if adapter.targets == "all-linear" and (said := reach_sentence(lm, names)):
            warn(said)


def adapter_settings(base: KnownBase, lm: Any, adapter: AdapterConfig, head: bool = False) -> PeftConfig:
    """PEFT's configuration of an adapter on a base without weights, for a role with a scalar head or without one."""
    if adapter.new_tokens:
        add_rows(lm, len(base.renderer.tokenizer))
    made = adapter_config(lm, linear_layers(lm), adapter)
    return add_embeddings(made, lm, base.renderer.tokenizer, adapter, head)


def check_stored_adapter(base: KnownBase, folder: Path, what: str) -> None:
    """Compare the shapes of an adapter's weights with the base that it will stand on; other folders pass.

    Raises:
        UserError: it is an adapter of another base.
    """
    file = next((f / WEIGHTS for f in (folder / ADAPTER, folder) if (f / CONFIG).is_file()), None)
    if file is None or not file.is_file():  # what is missing is told where it is loaded
        return
    modules = dict(model_of(base).named_modules())
    other, known, matrices = f"{what}: {file} is an adapter of another base", 0, 0
    for name, shape in _shapes(file):
        path, found = module_of(name), _side(name, shape)
        if found is None:
            continue
        tensor, side, numbers = found
        sizes = _sizes(modules.get(path))
        matrices, known = matrices + 1, known + (path in modules)
        if sizes is not None and numbers != sizes[side]:
            raise UserError(
                f"{other}: {path} takes {sizes[0]} numbers and gives {sizes[1]} in base {base.name}, and its {tensor} "
                f"is {shape[0]} x {shape[1]}"
            )
    if matrices and not known:
        raise UserError(f"{other}: base {base.name} has none of its modules")


def _side(name: str, shape: Sequence[int]) -> tuple[str, int, int] | None:
    """What an adapter's tensor is called, whether it is as long as inputs (0) or outputs (1), and that length."""
    if len(shape) != 2:
        return None
    sides = {"lora_A.weight": (0, shape[1]), "lora_B.weight": (1, shape[0])}
    sides["ia3_l"] = (0, shape[1]) if shape[0] == 1 else (1, shape[0])
    return next(((tensor.partition(".")[0], *side) for tensor, side in sides.items() if name.endswith(tensor)), None)


def _shapes(file: Path) -> list[tuple[str, list[int]]]:
    try:
        with safe_open(file, framework="np") as opened:
            return [(name, opened.get_slice(name).get_shape()) for name in opened.keys()]  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: not a readable safetensors file ({error})") from error


def _sizes(module: Any) -> tuple[int, int] | None:
    """Numbers of inputs and outputs of a linear layer; None of what is none."""
    if (weight := getattr(module, "weight", None)) is None or weight.dim() != 2:
        return None
    rows, columns = weight.shape
    return (rows, columns) if type(module).__name__ == "Conv1D" else (columns, rows)


def _config_of(folder: Path, spec: BaseModelSpec) -> Any:
    """The config of a causal language model.

    Raises:
        UserError: it is of another kind, which no stage can use.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # damaged configs make the library raise anything
        raise UserError(f"base {spec.name}: its config.json cannot be read ({str(error).splitlines()[0]})") from error
    if config.model_type not in CAUSAL:
        raise UserError(
            f"base {spec.name}: '{config.model_type}' is no causal language model, which every stage needs; choose "
            "another base (`trivet models` lists some)"
        )
    return config


def _generation_stops(folder: Path, config: Any) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Stop ids and strings of the generation config, as the loaded model will have them."""
    file = folder / "generation_config.json"
    # where there is no such file, the model makes one of its config
    own = read_object(file) if file.is_file() else {"eos_token_id": config.get_text_config().eos_token_id}
    where = str(file if file.is_file() else folder / "config.json")
    return stop_ids_in(own.get("eos_token_id"), where), stop_strings_in(own.get("stop_strings"), where)
