"""The curves as a table: one row a step, metric and value, of everything that the report draws of the stages."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.report.charts import BEFORE, finite, short
from pipelines.stages.table import STAGES


def as_csv(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """``stage,step,metric,value`` for every row of the stages' metrics, in five digits; empty without one.

    What a metric was before training stands under its own name, ``METRIC_before``.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("stage", "step", "metric", "value"))
    count = 0
    for stage, rows in metrics.items():
        keys = [key for key, _, _ in STAGES[stage].curves] if stage in STAGES else []
        for i, row in enumerate(rows):
            for name in (own for key in keys for own in (f"{key}{BEFORE}", key)):
                if finite(row.get(name)):
                    writer.writerow((stage, row.get("step", i + 1), name, short(row[name])))
                    count += 1
    return out.getvalue() if count else ""
