"""A response that nobody wrote and that is worth less than any of its ranking: the ranking's worst one, damaged.

Preference data hold no empty, halved or unended responses, so nothing in them says that such are bad, and a policy
finds what a reward model was never told. What is added is worse by construction; Liu et al. 2024 ("RRM: Robust Reward
Model Training Mitigates Reward Hacking", arXiv 2409.13156) add responses to other prompts to the same end.
"""

from __future__ import annotations

from collections.abc import Sequence

from data.records import RankedAnswers
from data.storage.digests import digest
from reward.card.probes import PROBES, ProbedAnswer

ANOTHER = "answer to another prompt"
OTHERS = 8  # rankings that follow, among whose responses one to another prompt is looked for


def negative(
    rankings: Sequence[RankedAnswers], place: int, kinds: Sequence[str], share: float = 1.0
) -> tuple[str, bool] | None:
    """The text of a worse response to a ranking's prompt, and whether it ended; None where no kind applies, or the
    ranking is not among those that get one.

    Args:
        rankings: all of a training.
        place: of the ranking among them.
        kinds: names of ``reward.card.probes``; the prompt decides on one, the same in every run; where it does not
            apply, the next is taken.
        share: of the rankings that get one, which the prompt decides as well.
    """
    ranking = rankings[place]
    if digest(f"negatives_share {ranking.prompt.group} {ranking.prompt.text}") >= share * 2**64:
        return None
    first = digest(f"negative {ranking.prompt.group} {ranking.prompt.text}") % len(kinds)
    worst = max(range(len(ranking.answers)), key=lambda i: (ranking.ranks[i], -i))
    whole = ProbedAnswer(prompt=ranking.prompt.text, text=ranking.answers[worst])
    count = min(OTHERS, len(rankings) - 1) if ANOTHER in kinds else 0  # nothing else reads them, perhaps from a disk
    following = [rankings[(place + 1 + i) % len(rankings)] for i in range(count)]
    others = [ProbedAnswer(prompt=one.prompt.text, text=one.answers[0]) for one in following]
    for kind in (*kinds[first:], *kinds[:first]):
        made = PROBES[kind](whole, others)
        if made is not None and (made[0] != whole.text or made[1] != ranking.finished[worst]):
            return made
    return None
