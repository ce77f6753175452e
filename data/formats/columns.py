"""Columns that no format reads: which may stand next to those it reads, and which would be lost without a word.

``METADATA`` are names of what describes a row and is no part of what is learnt, ``REFERENCES`` those of what a user's
functions and evaluations are given. A column of another name is lost if it holds text, turns, or a number whose name
says that it judges.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from data.formats.rows import Reject
from data.formats.values import blank, parsed, words

METADATA = {
    "identity": "id qid uid uuid guid idx index hash sha sha256 md5 seed seed_task *_id *_ids *_id_list *_idx *_index "
    "*_hash *_sha256 *_uuid id_* row row_number sr_no s_no unnamed_*",
    "origin": "source data_source *_source dataset dataset_name dataset_version subset split datasplit origin url uri "
    "link *_url *_link file filename file_name path *_path license licence copyright version *_version meta "
    "metadata *_metadata extra extra_info info batch dump commit resource repo repo_name repository subreddit",
    "kind": "category *_category subcategory *_subcategory sub_category categories type *_type task *_task task_name "
    "domain topic subtopic sub_topic subject field level difficulty skill ability tag tags keywords keyword lang "
    "language *_lang *_language lang_code language_code country_code locale kind name title motivation_app "
    "*_moderation",
    "maker": "model model_name *_model *_model_name *_models model_a model_b models systems generator generator_* "
    "*_generator author annotator annotator_* labeler labeller evaluator judge worker created_by labeled_by "
    "annotated_by written_by reviewed_by reviewer rater username "
    "user_name email answer_from",
    "time": "date datetime time timestamp *_timestamp tstamp created created_at *_at *_date *_time created_utc *_utc",
    "counts": "length *_length *_len *_tokens n_* num_* *_count token_count tokens n_tokens count turns_count",
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
    r"|harmful|harmless|safe|unsafe|accepted|acceptable|approved|chosen|rejected|selected|pick|picked|choice|verdict"
    r"|star|stars|likert|grade|grades|points|feedback|upvote|downvote|downvotes|satisfaction|useful|usefulness|passed"
    r"|success|accuracy|relevance|good|bad|upvoted|downvoted|thumbsup|thumbsdown|dislike|disliked|likes|dislikes"
    r"|thumb|thumbs|bewertung|punkte|puntuacion|calificacion|puntaje|nota)([^a-z]|$)|评分|分数|得分|評価|점수|оценка"
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
    return bool(_METADATA.fullmatch(plain(name))) and not _POINTS.fullmatch(plain(name))


_POINTS = re.compile(
    r"(.+_)?(best|better|winner|winning|preferred|chosen|rejected|selected|correct)_(index|idx|id|ids)"
)
"""Names of what points at one of several responses."""


@lru_cache(maxsize=4096)
def is_reference(name: str) -> bool:
    return bool(_REFERENCES.fullmatch(plain(name)))


_RESPONSE = re.compile(
    r"(^|_)(chosen|rejected|accepted|preferred|better|worse|best|worst|good|bad|winner|loser|winning|losing|positive"
    r"|negative|selected|feedback)(_|$)"
)


@lru_cache(maxsize=4096)
def may_be_missing(name: str) -> bool:
    """Whether a blank text of this name is a judgement that nobody gave, and not an empty response."""
    return judges(name) and not _RESPONSE.search(plain(name))


@lru_cache(maxsize=4096)
def judges(name: str) -> bool:
    """Whether a number of this name would be a judgement."""
    return bool(_JUDGES.search(plain(name)))


def named_by(name: str, patterns: Collection[str]) -> bool:
    """Whether one of the patterns is this name or matches it."""
    return name in patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


FLAGS = words("on off true false yes no none null 0 1 0.0 1.0 enabled disabled")
_STATED = re.compile(
    r"[-+]?(\d+([.,]\d+)?|\.\d+)([eE][-+]?\d+)?%?"  # a number
    r"|https?://\S+"
    r"|\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d([.,]\d+)?)?( ?(Z|UTC|[-+]\d\d:?\d\d))?)?"
    r"|[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}|[0-9a-f]{32,128}"  # an id, a hash
    r"|true|false",
    re.IGNORECASE,
)
"""Text that is a number, an address, a time or an id, whatever its column is called: nobody learns from it."""


def is_flag(value: Any) -> bool:
    """Whether a value switches something on or off."""
    if isinstance(value, int | float):  # true and false too, which tables hold as numbers beside blank cells
        return value in (0, 1)
    return isinstance(value, str) and value.strip().lower() in FLAGS


def switch(value: Any) -> bool | None:
    """Whether a value switches on (true, yes, on, 1) or off; None where it does neither. A table holds text alone."""
    word = str(value).strip().lower()
    return True if word in _ON else False if word in _OFF else None


_ON, _OFF = words("true yes on 1 1.0 enabled"), words("false no off 0 0.0 disabled")


def check_pictures(row: Mapping[str, Any]) -> None:
    """Refuse a row that comes with pictures or sounds."""
    for name in row:
        if str(name).lower() in PICTURES and not blank(row[name]):
            raise Reject(f"it needs what is in its column {name}, which a model of text cannot see or hear")


def lost(
    row: Mapping[str, Any],
    names: Iterable[str],
    answers: int,
    spelled: Mapping[str, str] = MappingProxyType({}),
    in_order: int = 0,
) -> Iterator[str]:
    """Those of the names whose values would be lost.

    Args:
        row: the whole row.
        names: of columns that its format does not read.
        answers: responses that the format reads. A reference next to a bare prompt is there for functions; numbers in
            a list next to several responses may be their order.
        spelled: names as the file has them, where they are read in small letters.
        in_order: how many responses are ranked by their place in the row alone; 0 where something else ranks them.
    """
    for column in names:
        value = row[column]
        name = str(spelled.get(column, column))
        if blank(value) or (is_reference(name) and (not answers or name in _ALWAYS_KEPT)):
            continue
        if in_order > 1 and judges_each(name, value, in_order):
            yield column
            continue
        if is_metadata(name):
            if isinstance(value, str) and len(value) > LONGEST_NAME and "://" not in value[:12]:
                yield column
            continue
        if _states(name, value):
            if judges(name) or rules_out(name, value):
                yield column
        elif _says_something(value) or (
            isinstance(value, list | tuple) and (judges(name) or (answers > 1 and not _OF_EACH.fullmatch(plain(name))))
        ):
            yield column


_OUT = re.compile(
    r"(is_|was_|to_)?(deleted?|removed?|invalid|spam|discard(ed)?|excluded?|skip(ped)?|dropp?(ed)?"
    r"|((response|answer|output|completion|text)_)?(truncated?|cut|cut_off|cutoff|incomplete|unfinished|aborted))"
)
_IN = re.compile(
    r"(is_|to_)?(valid|keep|kept|included?|usable|((response|answer|output|completion|text)_)?(completed?|finished))"
)
_TURNED = re.compile(r"(is_|was_)?(tied?|ties|draws?|equal|swap(ped)?|flip(ped)?|reversed?|invert(ed)?)")


def rules_out(name: str, value: Any) -> bool:
    """Whether a switch says that a row is not to be used, that its response was cut, or that its order is another."""
    if not is_flag(value):
        return False
    means = (_OUT, _TURNED) if switch(value) else (_IN,)
    return any(one.fullmatch(plain(name)) for one in means)


_OF_EACH = _pattern(
    f"{METADATA['identity']} {METADATA['time']} seed ids length lengths *_length *_lengths *_len *_chars *_words "
    "tokens *_tokens token_count token_counts num_words word_count"
)
"""Names under which a list of numbers describes responses and cannot rank them."""
_VALUED = words(
    "good bad better worse best worst chosen rejected accepted preferred selected winner loser win lose won lost right "
    "wrong correct incorrect pass passed fail failed success failure true false yes no high low medium strong weak "
    "poor fair excellent great positive negative liked disliked safe unsafe helpful unhelpful up down first second"
)
"""Words that judge where each response has one."""


def judges_each(name: str, value: Any, count: int) -> bool:
    """Whether a value has a judgement of each of so many responses: a list of numbers or of words, also inside it."""
    value = _as_list(value)
    if isinstance(value, Mapping):
        return any(judges_each(str(key), inside, count) for key, inside in value.items())
    if not isinstance(value, list | tuple) or len(value) != count:
        return False
    if all(isinstance(one, Mapping) for one in value):
        return _holds_judgement(list(value))
    if _are_numbers(value):
        return judges(name) or not _OF_EACH.fullmatch(plain(name))
    found = {word for one in value if isinstance(one, str) for word in re.split(r"[^a-z]+", one.lower())}
    return all(isinstance(one, str) for one in value) and len(set(value)) > 1 and not found.isdisjoint(_VALUED)


def number_lists(name: str, value: Any) -> Iterator[str]:
    """The paths of lists of numbers in a column."""
    value = _as_list(value)
    if isinstance(value, Mapping):
        for key, inside in value.items():
            yield from number_lists(f"{name}.{key}", inside)
    elif isinstance(value, list | tuple) and _are_numbers(value):
        yield name


_NUMBER = re.compile(r"\s*[-+]?\d+([.,]\d+)?\s*")


def _as_list(value: Any) -> Any:
    """A value as it is, or the list that a cell of a table holds as JSON."""
    try:
        return parsed(value, "") if isinstance(value, str) and value[:1] == "[" else value
    except Reject:
        return value


def _are_numbers(values: Iterable[Any]) -> bool:
    return all(isinstance(one, int | float) or (isinstance(one, str) and _NUMBER.fullmatch(one)) for one in values)


def _states(name: str, value: Any) -> bool:
    """Whether a value is a number or says a thing by which nothing is learnt."""
    if isinstance(value, bool | int | float):
        return True
    return isinstance(value, str) and (bool(_STATED.fullmatch(value.strip())) or _switches(name, value))


def _switches(name: str, value: str) -> bool:
    """Whether a column says whether there is reasoning in a text, instead of holding it, or whether a row is used."""
    word = plain(name)
    return is_flag(value) and (
        word in ("reasoning", "thinking") or any(s.fullmatch(word) for s in (_IN, _OUT, _TURNED))
    )


_ALWAYS_KEPT = words(
    "ground_truth ground_truths gold gold_answer reference references reference_answer reference_answers "
    "target expected_answer expected_output test_cases tests unit_tests rubric rubrics verifier "
    "reward_model env_config instruction_id_list kwargs"
)


def _says_something(value: Any) -> bool:
    return _holds_text(value) or _holds_judgement(value)


def _holds_judgement(value: Any) -> bool:
    """Whether a number in it has a name that judges."""
    if isinstance(value, Mapping):
        return any((judges(str(k)) and isinstance(v, int | float)) or _holds_judgement(v) for k, v in value.items())
    return isinstance(value, list) and any(map(_holds_judgement, value))


def _holds_text(value: Any) -> bool:
    """Whether there is text in it, however deep."""
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, Mapping):
        return any(_holds_text(v) for v in value.values())
    if isinstance(value, list | tuple):
        return any(_holds_text(v) for v in value)
    return False
