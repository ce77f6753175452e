"""The findings about the records of a run in sentences: what its start and ``trivet plan`` show."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from data.common.patience import patience
from data.doctor.duplicates import near_duplicates
from data.doctor.rankings import preference_for_length, ranking_findings
from data.splits import Corpus

SAMPLE = 2000
"""Prompts of each side that are compared; more take minutes."""
ONE_SIDED = 0.8


def corpus_findings(corpus: Corpus) -> list[str]:
    """Sentences about doubtful rankings, near duplicates across the split, and a side that is empty."""
    rankings = (*corpus.rankings.train, *corpus.rankings.held_out)
    found = list(ranking_findings(rankings))
    out = []
    for kind, count in Counter(f.kind for f in found).items():
        one = next(f for f in found if f.kind == kind)
        out.append(f"{count:,} rankings: {kind}; the first is {one.place} ({one.text})")
    share = preference_for_length(rankings)
    if share is not None and share >= ONE_SIDED and len(rankings) >= 20:
        out.append(f"{share:.0%} of the ranked pairs prefer the longer response: a reward model may learn length alone")
    return [*out, *_held_out(corpus)]


def _held_out(corpus: Corpus) -> list[str]:
    held = {p.text: p.source for p in corpus.prompts.held_out if p.text}
    train = {p.text: p.source for p in corpus.prompts.train if p.text}
    if corpus.prompts.train and not corpus.prompts.held_out:
        return ["no prompt is held out: raise data.held_out, or evaluation has nothing to ask"]
    if len({p.group for p in corpus.prompts.held_out}) == 1 and len(corpus.prompts.held_out) > 1:
        return ["all held-out prompts are of one group"]
    sample = len(held) > SAMPLE or len(train) > SAMPLE
    known = [(place, text) for text, place in islice(train.items(), SAMPLE)]
    if not known:
        return []
    with patience("looking for held-out prompts that are nearly one of training"):
        leaks = list(near_duplicates(((place, text) for text, place in islice(held.items(), SAMPLE)), known))
    if not leaks:
        return []
    of = f"a sample of {SAMPLE:,} a side" if sample else f"{len(held):,}"
    return [
        f"{len(leaks):,} of {of} held-out prompts are nearly one of training; the first is {leaks[0][0]}, "
        f"nearly {leaks[0][1]}"
    ]
