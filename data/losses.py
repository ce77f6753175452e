"""What of files or sources does not arrive: rows, columns, responses, parts of files. One sentence each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.checks import DataCheck
from data.corpus import Corpus
from data.formats.dumps import BRANCHES
from data.formats.rows import DELETED, DUPLICATE
from data.formats.trees import UNJUDGED
from data.readers.rows import NOT_READ
from data.source_settings import DataConfig, Source, as_source
from data.splits import REPEATED

LOSSY = (DUPLICATE, DELETED, BRANCHES, UNJUDGED, REPEATED)
"""Notes of rows that arrive in part."""


def of_files(check: DataCheck, reading: Source | None = None) -> list[str]:
    """What is lost of files, and prompts that two of them share."""
    out = []
    for one in check.files:
        out += [f"{one.file}: {len(one.bad):,} rows cannot be used"] if one.bad else []
        out += [f"{one.file}: {note} ({one.notes[note]:,})" for note in LOSSY if one.notes.get(note)]
        out += [remark for remark in one.remarks if NOT_READ in remark]
    out += [f"{o.first} and {o.second} share {o.shared:,} prompts" for o in check.overlaps if o.shared]
    return out + _ignored("--ignore", reading.ignore if reading else ())


def of_recipe(corpus: Corpus, config: DataConfig, limits: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is lost of a recipe's sources on their way into its stages; what `where`, weight and limit choose is not.

    Args:
        limits: by stage how many rows its limit of tokens cuts and drops.
    """
    out = [f"{len(corpus.rejected):,} rows are rejected"] if corpus.rejected else []
    for count in corpus.counts:
        out += [f"{count.source}: {count.dropped:,} rows are dropped by cleaning"] if count.dropped else []
    out += [f"{note} ({corpus.notes[note]:,})" for note in LOSSY if corpus.notes.get(note)]
    out += [remark for remark in corpus.remarks if NOT_READ in remark]
    out += _ignored("data.ignore", config.ignore)
    sources = [*config.demonstrations, *config.rankings, *config.prompts, *config.documents]
    for source in map(as_source, sources):
        out += _ignored(f"{source.path}: ignore", source.ignore)
    for stage, counts in limits.items():
        cut = [f"{counts[what]:,} {what}" for what in ("cut", "dropped") if counts.get(what)]
        out += [f"{stage}: of {counts['rows']:,} {counts['what']} {' and '.join(cut)}"] if cut else []
    return out


def _ignored(setting: str, names: tuple[str, ...]) -> list[str]:
    return [f"{setting}: the columns {', '.join(names)} are left out"] if names else []
