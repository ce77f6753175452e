"""What ``trivet plan`` says of a stage besides its status: steps, rows, estimates, and what is cut or dropped.

Counts are the stages' own (``data.counting``): rows are rendered with the base's tokenizer where it lies on this
machine; no weights are loaded and nothing is fetched.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from data.common.errors import UserError
from data.counting import Tally, share_warning
from data.splits import PARTS, Corpus
from data.template import Renderer
from models.backbone.processes import resolve_dtype
from models.hub.load import tokenizer_of
from models.hub.registry import BaseModelSpec, resolve_base
from pipelines.recipe.schema import Recipe
from pipelines.stages.estimates import LIBRARIES, Estimator
from pipelines.stages.table import STAGES


@dataclass(frozen=True)
class PlanDetails:
    """Details of the stages of one recipe.

    ``pretrained`` is where the run's own base lies once it is done; ``before`` the plans of the stages so far.
    """

    recipe: Recipe
    corpus: Corpus
    device: torch.device
    pretrained: Path
    before: Sequence[Any] = ()

    def of(self, name: str) -> dict[str, Any]:
        """``steps``, ``rows``, ``takes`` and ``counts`` of a stage; no counts where the base is not there yet.

        Raises:
            UserError: the template refuses a row; its file and line are named.
        """
        rows = {p: len(getattr(self.corpus, p).train) for p in STAGES[name].data}
        steps = STAGES[name].steps(self.recipe, self.corpus)
        tally = self._tally(name)
        counts = {} if tally is None else tally.as_dict()
        warning = "" if tally is None else tally.warning()
        return {
            "steps": steps,
            "rows": rows,
            "takes": self.estimator.of(STAGES[name].estimate(self.estimator)),
            "counts": counts,
            "counted": "" if tally is None else tally.summary(),
            "warning": warning,
        }

    @cached_property
    def estimator(self) -> Estimator:
        dtype = resolve_dtype(self.recipe.runtime.dtype, self.device)
        return Estimator(self.recipe, self.corpus, dtype.itemsize, LIBRARIES if self.device.type == "cpu" else 0)

    @cached_property
    def renderer(self) -> Renderer | None:
        """That of the stages, or None where the base is not on this machine yet."""
        stale = any(p.name == "pretrain" and p.status != "cached" for p in self.before)
        if not isinstance(self.recipe.base, str) and (stale or not self.pretrained.is_dir()):
            return None
        source = self.recipe.base if isinstance(self.recipe.base, str) else str(self.pretrained)
        spec = resolve_base(source, base_dir=self.recipe.base_dir)
        if not Path(spec.source).is_dir():
            return None
        try:
            tokenizer = tokenizer_of(spec)
        except UserError:  # weights without a tokenizer, or a damaged one: the run tells it when it loads the base
            return None
        return renderer_of(spec, self.recipe, tokenizer)

    def _tally(self, name: str) -> Tally | None:
        tally = STAGES[name].tally
        if tally is None or self.renderer is None:
            return None
        return tally(self.renderer, self.recipe, self.corpus)


def renderer_of(spec: BaseModelSpec, recipe: Recipe, tokenizer: Any) -> Renderer:
    """The renderer of a base that lies in a folder, from its tokenizer and generation config alone."""
    stops: Any = None
    config = Path(spec.source) / "generation_config.json"
    if config.is_file():
        stops = json.loads(config.read_text(encoding="utf-8")).get("eos_token_id")
    return Renderer(tokenizer, template=recipe.template_source, stop=recipe.stop or spec.stop, extra_stop_ids=stops)


def rejected_warning(corpus: Corpus) -> str:
    """A sentence where more than 5 % of the rows that were read cannot be used; empty otherwise."""
    if not corpus.rejected:
        return ""
    rows = len(corpus.rejected) + max(len(getattr(corpus, part)) for part in PARTS)
    first = corpus.rejected[0]
    return share_warning(
        len(corpus.rejected), rows, "rows were rejected", f"the first is {first.source} ({first.reason})"
    )
