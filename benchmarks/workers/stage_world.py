"""What trivet's workers share: a stage's context around a shared base, with nothing shown and nothing resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.splits import Corpus
from data.template import Renderer
from models.backbone.processes import Processes
from models.backbone.settings import AdapterConfig
from models.roles.shared_base import SharedBase
from stages.stage import MetricsLog, StageContext


class Silent:
    def advance(self, *_: Any, **__: Any) -> None:
        """Nothing to show."""

    def phase(self, *_: Any) -> Any:
        """Nothing to show either."""
        return lambda count: None


def context_of(folder: str, base: SharedBase, adapter: AdapterConfig, corpus: Corpus, **more: Any) -> StageContext:
    return StageContext(
        out=Path(folder), seed=0, open_base=lambda: (base, Renderer(base.tokenizer, template="dialogue")),
        corpus=corpus, adapter=adapter, inputs={}, processes=Processes("cpu"),
        log=MetricsLog(Path(folder) / "metrics.jsonl"), bar=Silent(),
        say=lambda text: None, warn=lambda text: None, **more,
    )  # fmt: skip
