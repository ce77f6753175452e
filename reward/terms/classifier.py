"""A ready reward model - any sequence classifier of Transformers - as a term of the reward."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from data.common.errors import UserError
from models.hub.download import folder_of, local_folder
from models.hub.registry import resolve_base
from models.roles.classifier import Classifier, is_classifier
from reward.model import Samples, TextsRead


def classifier_folder(source: str, base_dir: Path, download: bool = True) -> Path | None:
    """Where the files of a classifier lie on this machine.

    Args:
        source: a folder, or a hub id with or without ``@revision``.
        base_dir: what a relative path starts from.
        download: fetch what is not here; otherwise None stands for it.

    Raises:
        UserError: there is nothing of that name, or something else than a classifier.
    """
    spec = resolve_base(source, base_dir=base_dir)
    found = local_folder(spec.source, spec.revision)
    if found is None and download:
        found = folder_of(spec.source, spec.revision)
    if found is not None and not is_classifier(found):
        raise UserError(
            f"{source}: is no sequence classifier (its config.json names no ...ForSequenceClassification). A reward "
            "adapter of trivet's is given by --input reward=PATH, a function as file.py:function"
        )
    return found


class ClassifierReward:
    """The classifier's score of each response, in Transformers' modules and the precision of its weights.

    ``texts`` counts what it was given so far.

    Args:
        source: a folder, or a hub id.
        base_dir: what a relative path starts from.
        device: where it computes.
        label: of several labels, the one whose log-odds are the score.
    """

    def __init__(self, source: str, base_dir: Path, device: torch.device, label: str | None = None) -> None:
        folder = classifier_folder(source, base_dir)
        assert folder is not None
        self.classifier, self.texts = Classifier(folder, device, label), TextsRead()

    def __call__(self, samples: Samples) -> Tensor:
        given = zip([p.messages for p in samples.prompts], samples.texts, samples.finished, strict=True)
        rows = [self.classifier.encoded(*row) for row in given]
        for row in rows:
            self.texts.add(row.given["input_ids"], row.cut, self.classifier.unknown_id)
        return torch.tensor(self.classifier.scores(rows), dtype=torch.float32)
