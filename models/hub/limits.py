"""What a base takes: ids that have an embedding, and positions. One set of checks for loading, planning and all stages.

Models with a table of positions (GPT-2, OPT) break beyond it. Rotary models compute on, worse the farther beyond what
they were trained for, so there it is a warning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.common.errors import UserError
from data.common.strict_json import read_object
from data.tokens import added_tokens
from models.hub.validate import shapes_of, weight_files

TABLE = re.compile(r"(^|\.)(wpe|embed_positions|position_embeddings?|positions_embed)(\.weight)?$")
BUFFERED = ("gptj", "codegen", "ctrl")
"""Families whose table of positions is computed and in no file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one base.

    Attributes:
        name: of the base, for messages.
        embeddings: ids that have one.
        positions: that the model has, or was made for; None where nothing says so.
        table: whether positions are rows of a table, so that one beyond is an error.
    """

    name: str
    embeddings: int
    positions: int | None
    table: bool


def limits_of_model(lm: Any, name: str) -> Limits:
    """Limits of a loaded causal LM."""
    config = lm.config.get_text_config()
    named = [*lm.named_parameters(), *lm.named_buffers()]
    return Limits(
        name=name,
        embeddings=lm.get_input_embeddings().weight.shape[0],
        positions=getattr(config, "max_position_embeddings", None),
        table=any(TABLE.search(n.replace(".base_layer", "")) for n, _ in named) or config.model_type in BUFFERED,
    )


def limits_of_folder(folder: Path, name: str) -> Limits | None:
    """Limits by ``config.json`` and the headers of the weights; None where the config names no vocabulary."""
    raw = read_object(folder / "config.json", largest=16 << 20)
    config: Mapping[str, Any] = raw.get("text_config") or raw
    names = ("max_position_embeddings", "n_positions")
    positions = next((v for n in names if isinstance(v := config.get(n), int)), None)
    if not isinstance(config.get("vocab_size"), int):
        return None
    stored = [n for file in weight_files(folder) for n, _ in shapes_of(file)]
    table = any(TABLE.search(n) for n in stored) or config.get("model_type") in BUFFERED
    return Limits(name=name, embeddings=config["vocab_size"], positions=positions, table=table)


def width_of_folder(folder: Path) -> int | None:
    """Width of a base's states by ``config.json``; None where that does not say."""
    if not (folder / "config.json").is_file():
        return None
    raw = read_object(folder / "config.json", largest=16 << 20)
    config: Mapping[str, Any] = raw.get("text_config") or raw
    return next((v for n in ("hidden_size", "n_embd", "d_model") if isinstance(v := config.get(n), int)), None)


def check_vocabulary(limits: Limits, tokenizer: Any) -> None:
    """Compare the tokenizer with the embeddings. Added tokens beyond them, which some bases have for pictures, are
    refused only where they occur (``check_rows``, ``check_stops``).

    Raises:
        UserError: ordinary tokens without an embedding: this tokenizer belongs to another model.
    """
    vocabulary = tokenizer.get_vocab()
    if max(vocabulary.values(), default=-1) < limits.embeddings:
        return
    added = added_tokens(tokenizer)
    beyond = sorted((i, t) for t, i in vocabulary.items() if i >= limits.embeddings and i not in added)
    if beyond:
        raise UserError(
            f"base {limits.name}: its tokenizer has {len(beyond)} tokens without an embedding (the first is "
            f"{beyond[0][1]!r}, id {beyond[0][0]}; the model has {limits.embeddings}); use the tokenizer that belongs "
            "to the model"
        )


def stop_ids_in(value: Any, where: str) -> tuple[int, ...]:
    """Ids of an ``eos_token_id``, which is a number, a list of them or nothing.

    Raises:
        UserError: it is anything else, such as a text or true, which Python takes for 1.
    """
    found = () if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)
    if any(isinstance(i, bool) or not isinstance(i, int) for i in found):
        raise UserError(f"{where}: eos_token_id: {value!r:.60} is no token id and no list of them; write numbers there")
    return found


def stop_strings_in(value: Any, where: str) -> tuple[str, ...]:
    """Texts of a ``stop_strings``, which is a text, a list of them or nothing.

    Raises:
        UserError: it is anything else.
    """
    found = () if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)
    if not all(isinstance(text, str) and text for text in found):
        raise UserError(f"{where}: stop_strings: {value!r:.60} is no text and no list of them; write texts there")
    return found


def check_stops(limits: Limits, stop_ids: Iterable[int]) -> None:
    """Check the tokens that end a response.

    Raises:
        UserError: one of them has no embedding, so the model can never write it.
    """
    beyond = [i for i in stop_ids if not 0 <= i < limits.embeddings]
    if beyond:
        raise UserError(
            f"stop: id {beyond[0]} is outside the {limits.embeddings} embeddings of base {limits.name}, which can "
            "never write it (it comes from `stop:`, the chat template, the tokenizer's EOS or the model's generation "
            'config); name a token that the model has, e.g. `stop: ["</s>"]`'
        )


NEUTRAL: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "num_beams": 1,
    "guidance_scale": 1.0,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
}
"""Settings of a generation config that change which tokens come, with the value that changes nothing."""


def unused_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a generation config would change the model's own distribution; no stage and no export uses it."""
    found = {key: config[key] for key in NEUTRAL if config.get(key) is not None}
    return {key: value for key, value in found.items() if value != NEUTRAL[key] and value not in ([], {})}


def unused_sentence(unused: Mapping[str, Any], name: str) -> str:
    """What a user of the base is told of it; empty where there is nothing."""
    if not unused:
        return ""
    shown = ", ".join(f"{key} {str(value)[:40]}" for key, value in unused.items())
    return (
        f"base {name}: its generation_config.json sets {shown}: nothing here uses it. Responses come from the model's "
        "own distribution, in training, evaluation, chat and exports"
    )


def check_rows(
    limits: Limits,
    rows: Iterable[Sequence[int]],
    what: str,
    cure: str,
    warn: Callable[[str], None],
    room: int = 0,
    where: Sequence[str] = (),
) -> None:
    """Compare rows of ids, each followed by at most ``room`` new tokens, with what the base takes.

    Args:
        what: the rows are, for messages: "data.demonstrations".
        cure: the setting that makes them fit: "lower sft.max_tokens".
        warn: reports that a rotary model is asked beyond the positions that it was made for.
        where: of each row, its file and line.

    Raises:
        UserError: an id without an embedding, or a row longer than a table of positions.
    """
    count = beyond = 0
    longest = (0, 0)  # tokens, place
    for i, row in enumerate(rows):
        if row and max(row) >= limits.embeddings:
            raise UserError(
                f"{_place(what, where, i)}: holds token id {max(row)}, and base {limits.name} has "
                f"{limits.embeddings} embeddings; use the tokenizer that belongs to the model"
            )
        length, count = len(row) + room, count + 1
        longest = (length, i) if length > longest[0] else longest
        beyond += limits.positions is not None and length > limits.positions
    if not beyond:
        return
    new = f", {room} of them new" if room else ""
    text = (
        f"{_place(what, where, longest[1])}: {beyond} of {count} rows are longer than the {limits.positions} "
        f"positions of base {limits.name} (the longest: {longest[0]} tokens{new})"
    )
    if limits.table:
        raise UserError(f"{text}; {cure}")
    warn(f"{text}; beyond them it computes on, but was not made for it: {cure}")


def _place(what: str, where: Sequence[str], row: int) -> str:
    return f"{what} ({where[row]})" if row < len(where) and where[row] else what
