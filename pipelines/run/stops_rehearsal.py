"""What the demonstrations say about the ends of responses, before the first stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from data.records import Demonstration
from data.stop_strings import StopStrings


def doubtful_ends(stops: StopStrings, shown: Sequence[Demonstration]) -> Iterator[str]:
    """Sentences about demonstrations that teach no end, or that go on where a sampled response would have ended.

    Args:
        stops: the strings that end a response.
        shown: the demonstrations, or some of them.
    """
    if not shown:
        return
    if not any(d.finished or any(text in d.answer for text in stops.texts) for d in shown):
        yield (
            f"none of {len(shown):,} demonstrations ends in a stop token"
            f"{' or has a stop string' if stops else ''}: SFT teaches no end, and responses may all be as long as is "
            "allowed; leave `finished` out of rows that are whole"
        )
    if behind := [d for d in shown if _goes_on(stops, d.answer)]:
        yield (
            f"{len(behind):,} of {len(shown):,} demonstrations go on behind a stop string (the first is "
            f"{behind[0].prompt.source}): SFT trains on what is never sampled; cut them there, or leave the string out "
            "of `stop_strings`"
        )


def _goes_on(stops: StopStrings, text: str) -> bool:
    return any(text.partition(stop)[2].strip() for stop in stops.texts)
