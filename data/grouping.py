"""Groups of records without a prompt: those that share a text are one group, however long the chain.

Works on numbers alone (``storage.digests``); a group's name is asked for only where several groups become one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from data.storage.digests import Digests, among, repeated


def joined_groups(
    groups: Digests, texts: Digests, name_of: Callable[[int], str] | None = None
) -> tuple[Digests, Digests]:
    """The groups that give way to another one, sorted, and those that they become.

    Of the groups that texts connect, all become the one with the smallest name: the same whatever the order.

    Args:
        groups: one for each text of each record.
        texts: the texts' numbers.
        name_of: the name of a group by its number; None where numbers sort as names do.
    """
    several = among(texts, repeated(texts))
    found, edges = np.unique(groups[several], return_inverse=True)
    if not len(found):
        return np.empty(0, np.uint64), np.empty(0, np.uint64)
    labels = _components(edges, np.unique(texts[several], return_inverse=True)[1], len(found))
    order = np.argsort(labels, kind="stable")  # of one component in the order of their numbers
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    sizes = np.diff([*starts, len(order)])
    tops = found[order[starts]]
    if name_of is not None:
        for i in np.flatnonzero(sizes > 1):
            members = found[order[starts[i] : starts[i] + sizes[i]]]
            tops[i] = min(map(int, members), key=name_of)
    top = np.empty_like(found)
    top[order] = np.repeat(tops, sizes)
    changed = top != found
    return found[changed], top[changed]


def _components(groups: np.ndarray, texts: np.ndarray, count: int) -> np.ndarray:
    """The number of the component of each group."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    nodes = count + int(texts.max()) + 1
    links = coo_matrix((np.ones(len(groups), np.int8), (groups, texts + count)), shape=(nodes, nodes))
    return connected_components(links, directed=False)[1][:count]  # type: ignore[no-any-return]


def renamed(groups: Digests, before: Digests, after: Digests) -> Digests:
    """Groups with those that give way replaced; ``before`` is sorted."""
    hit = among(groups, before)
    out = groups.copy()
    out[hit] = after[np.searchsorted(before, groups[hit])]
    return out
