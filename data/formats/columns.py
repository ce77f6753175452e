"""Columns that no format reads: which may stand next to those it reads, and which would be lost without a word.

``METADATA`` are names of what describes a row and is no part of what is learnt, ``REFERENCES`` those of what a user's
functions and evaluations are given. A column of another name is lost if it holds text, turns, or a number whose name
says that it judges.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from data.formats.rows import Reject
from data.formats.values import blank, words

METADATA = {
    "identity": "id qid uid uuid guid idx index hash sha sha256 md5 seed seed_task *_id *_ids *_id_list *_idx *_index "
    "*_hash *_sha256 id_*",
    "origin": "source data_source *_source dataset dataset_name dataset_version subset split datasplit origin url uri "
    "link *_url file filename file_name path *_path license licence copyright version meta "
    "metadata extra extra_info info",
    "kind": "category *_category categories type *_type task *_task task_name domain topic subject field level "
    "difficulty skill ability tag tags keywords keyword lang language *_lang *_language kind name title motivation_app",
    "maker": "model model_name *_model model_a model_b models systems generator generator_* author annotator "
    "annotator_* evaluator judge worker created_by reviewer",
    "time": "date datetime time timestamp tstamp created created_at *_at *_date *_time",
    "counts": "length *_length n_* num_* *_count token_count tokens n_tokens count turns_count",
    "groups": "group cluster *_cluster fold",
}
"""Names that may stand in a row unread, with ``*`` for any text, by what they say."""

REFERENCES = (
    "ground_truth ground_truths gold gold_answer reference references reference_answer reference_answers target "
    "targets solution solutions expected expected_answer expected_output label labels answer final_answer "
    "correct_answer correct_answers test_cases tests test unit_tests rubric rubrics verifier reward_model env_config "
    "kwargs instruction_id_list constraints options choices"
)
"""Names of what a prompt's responses are judged by: kept for functions, where the format has no response of its own."""

PICTURES = words("image images video videos audio audios image_path image_paths pixel_values")
_JUDGES = re.compile(
    r"(^|[^a-z])(score|scores|rank|ranks|ranking|label|labels|reward|rewards|rating|ratings|preference|preferred|winner|vote"
    r"|votes|liked|like|better|best|helpful|helpfulness|margin|quality|tag|judgement|judgment|loss|weight|upvotes|correct|correctness"
    r"|harmful|harmless|safe|unsafe|accepted|acceptable|approved"
    r"|thumb|thumbs)([^a-z]|$)"
)


def _pattern(names: str) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(name).replace(r"\*", ".+") for name in names.split()))


_METADATA = _pattern(" ".join(METADATA.values()))
_REFERENCES = _pattern(REFERENCES)
LONGEST_NAME = 300
"""Characters of a value that stands unread; a longer one under such a name is a text (addresses aside)."""


def plain(name: str) -> str:
    """A name in small letters with ``_`` between its words."""
    return re.sub(r"[\s.-]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.strip())).lower()


@lru_cache(maxsize=4096)
def is_metadata(name: str) -> bool:
    return bool(_METADATA.fullmatch(plain(name)))


@lru_cache(maxsize=4096)
def is_reference(name: str) -> bool:
    return bool(_REFERENCES.fullmatch(plain(name)))


@lru_cache(maxsize=4096)
def judges(name: str) -> bool:
    """Whether a number of this name would be a judgement."""
    return bool(_JUDGES.search(plain(name)))


def check_pictures(row: Mapping[str, Any]) -> None:
    """Refuse a row that comes with pictures or sounds."""
    for name in row:
        if str(name).lower() in PICTURES and not blank(row[name]):
            raise Reject(f"it needs what is in its column {name}, which a model of text cannot see or hear")


def lost(row: Mapping[str, Any], names: Iterable[str], answered: bool) -> Iterator[str]:
    """Those of the names whose values would be lost.

    Args:
        row: the whole row.
        names: of columns that its format does not read.
        answered: whether the format reads a response; a reference next to a bare prompt is there for functions.
    """
    for name in names:
        value = row[name]
        name = str(name)
        if blank(value) or (is_reference(name) and (not answered or name in _ALWAYS_KEPT)):
            continue
        if is_metadata(name):
            if isinstance(value, str) and len(value) > LONGEST_NAME and "://" not in value[:12]:
                yield name
            continue
        if isinstance(value, bool | int | float):
            if judges(name):
                yield name
        elif _holds_text(value) or (judges(name) and isinstance(value, list | tuple)):
            yield name


_ALWAYS_KEPT = words(
    "ground_truth ground_truths gold gold_answer reference references reference_answer reference_answers "
    "target expected_answer expected_output test_cases tests unit_tests rubric rubrics verifier "
    "reward_model env_config instruction_id_list kwargs"
)


def _holds_text(value: Any) -> bool:
    """Whether there is text in it, however deep."""
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, Mapping):
        return any(_holds_text(v) for v in value.values())
    if isinstance(value, list | tuple):
        return any(_holds_text(v) for v in value)
    return False
