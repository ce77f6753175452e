"""A plain Transformers sequence classifier as a scorer: somebody else's reward model, or a classifier of responses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data.common.errors import UserError, nearest
from data.common.strict_json import read_object
from data.records import Message
from data.template import Renderer
from data.tokens import bounded, unknown_id
from models.hub.limits import OFFSET_POSITIONS
from models.hub.load import load_tokenizer
from models.hub.validate import check_model
from models.roles.files import SCORING

BATCH = 16


def is_classifier(folder: Path) -> bool:
    """Whether a folder's ``config.json`` names a model for sequence classification."""
    try:
        named = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    except (OSError, ValueError, AttributeError):
        return False
    return any(str(name).endswith("ForSequenceClassification") for name in named)


def positions(config: Any) -> int | None:
    """The longest row that a classifier takes, in tokens; RoBERTa's tables begin behind the padding's own position."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if limit is not None and text.model_type in OFFSET_POSITIONS:
        limit -= (text.pad_token_id or 0) + 1
    return limit


def label_number(config: Any, label: str | None, folder: Path) -> int:
    """Which of a classifier's labels is scored.

    Raises:
        UserError: it has no such label, or several and none is named.
    """
    names = [str(config.id2label[i]) for i in range(config.num_labels)]
    if label is not None and label not in names:
        raise UserError(f"label {label}: {folder} has no such label.{nearest(label, names)} It has: {names}")
    if label is None and len(names) > 1:
        raise UserError(
            f"{folder}: has {len(names)} labels; name the one to score by `label` (trivet score: --label): {names}"
        )
    return 0 if label is None else names.index(label)


def _exported(folder: Path) -> tuple[int, tuple[int, ...], float]:
    """What a run's reward model depends on beside its weights: the longest row, which is cut, the tokens that end a
    response, and what is added to the logit. Others' have no limit and nothing to add.

    Raises:
        UserError: the file that says so is damaged.
    """
    if not (folder / SCORING).is_file():
        return 1 << 20, (), 0.0
    own = read_object(folder / SCORING)
    try:
        return int(own["max_tokens"]), tuple(int(i) for i in own["stop_ids"]), float(own["add_to_classifier"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / SCORING}: not as `trivet export` writes it ({error!r})") from error


@dataclass(frozen=True, slots=True)
class ClassifierRow:
    """What a classifier is given of a response and its prompt, and whether its limit leaves only a part of them."""

    given: dict[str, list[int]]
    cut: bool = False


class Classifier:
    """Scores responses: the logit of a model with one label, or the log-odds of one of several.

    Raises:
        UserError: it cannot be loaded safely, or ``label`` is none of its labels (or needed and not given).
    """

    def __init__(self, folder: Path, device: torch.device, label: str | None = None) -> None:
        from transformers import AutoModelForSequenceClassification

        check_model(folder)
        try:
            self.model: Any = AutoModelForSequenceClassification.from_pretrained(
                folder, use_safetensors=True, trust_remote_code=False, local_files_only=True
            )
        except (ValueError, OSError, RuntimeError) as error:
            raise UserError(f"{folder}: cannot be loaded as a classifier ({str(error).splitlines()[0]})") from error
        self.model.eval().to(device)
        self.limit = positions(self.model.config)
        self.model.config.get_text_config().pad_token_id = self.model.config.pad_token_id = -1  # nothing is padded
        self.tokenizer = load_tokenizer(str(folder))
        self.longest, stop, self.add = _exported(folder)
        chat = self.tokenizer.chat_template
        self.renderer = Renderer(self.tokenizer, template="auto", stop=stop) if chat else None
        self.label = label_number(self.model.config, label, folder)
        self.unknown_id = unknown_id(self.tokenizer)

    def encoded(self, messages: Sequence[Message], answer: str, finished: bool) -> ClassifierRow:
        """What the model is given: the conversation by its chat template; without one, prompt and response as a pair of
        texts, with whatever else its tokenizer makes of a pair (such as which of the two a token is of)."""
        if self.renderer is not None:
            made = self.renderer.fitted(messages, answer, finished, max_tokens=self.longest)
            return ClassifierRow({"input_ids": [*made.query, *made.response]}, made.cut)
        asked = "\n\n".join(m.content for m in messages)
        with bounded(asked + answer):
            ids = self.tokenizer(asked, answer) if asked else self.tokenizer(answer)
        return ClassifierRow({name: list(ids[name]) for name in ("input_ids", "token_type_ids") if name in ids})

    def __call__(
        self, asked: Sequence[Sequence[Message]], answers: Sequence[str], finished: Sequence[bool]
    ) -> list[float]:
        """One score a response."""
        return self.with_cuts(asked, answers, finished)[0]

    def with_cuts(
        self, asked: Sequence[Sequence[Message]], answers: Sequence[str], finished: Sequence[bool]
    ) -> tuple[list[float], list[int]]:
        """The scores, and the rows (from 0) of which the model's limit leaves a part: their scores are those of it."""
        made = [self.encoded(*row) for row in zip(asked, answers, finished, strict=True)]
        return self.scores(made), [i for i, row in enumerate(made) if row.cut]

    @torch.no_grad()
    def scores(self, encoded: Sequence[ClassifierRow]) -> list[float]:
        """One score a row; only rows of equal length share a pass, so that no padding is seen.

        Raises:
            UserError: a row has more tokens than the model has positions.
        """
        rows, limit = [row.given for row in encoded], self.limit
        if limit is not None and (long := [i for i, r in enumerate(rows) if len(r["input_ids"]) > limit]):
            longest = len(rows[long[0]]["input_ids"])
            raise UserError(f"response {long[0]} and its prompt have {longest} tokens, the model takes {limit}")
        out, groups = [0.0] * len(rows), dict[int, list[int]]()
        for i, row in enumerate(rows):
            groups.setdefault(len(row["input_ids"]), []).append(i)
        for same in groups.values():
            for at in range(0, len(same), BATCH):
                chosen = same[at : at + BATCH]
                given = {
                    name: torch.tensor([rows[i][name] for i in chosen], device=self.model.device)
                    for name in rows[chosen[0]]
                }
                mask = torch.ones_like(given["input_ids"])
                logits = self.model(**given, attention_mask=mask).logits.cpu().double()
                for i, row_logits in zip(chosen, logits, strict=True):
                    out[i] = self._score(row_logits)
        return out

    def _score(self, logits: torch.Tensor) -> float:
        if len(logits) == 1:
            return logits[0].item() + self.add
        others = torch.cat([logits[: self.label], logits[self.label + 1 :]])
        return (logits[self.label] - others.logsumexp(0)).item()
