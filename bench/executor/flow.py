"""Where lanes that part at a branch meet again: the branch's immediate post-dominator."""

from __future__ import annotations

import numpy as np

from bench.executor.layout import GUARD, JOIN, NONE, OP, TARGET, Op


def set_joins(rows: np.ndarray) -> None:
    """Write into each branch the row where its two ways meet, NONE where both end first.

    A block is named by its first row; the end of the program is one more block, which every return leads to.
    """
    count = len(rows)
    leaders = {0, count}
    for n in range(count):
        if rows[n, OP] == Op.BRANCH:
            leaders |= {int(rows[n, TARGET]), n + 1}
        elif rows[n, OP] in (Op.RETURN, Op.TRAP):
            leaders.add(n + 1)
    starts = sorted(leader for leader in leaders if leader < count)
    ends = dict(zip(starts, [*starts[1:], count], strict=True))
    following: dict[int, list[int]] = {}
    for start in starts:
        last = ends[start] - 1
        after = last + 1
        if rows[last, OP] == Op.BRANCH:
            both = [int(rows[last, TARGET])]
            following[start] = both if rows[last, GUARD] == NONE else [*both, after]
        elif rows[last, OP] in (Op.RETURN, Op.TRAP):
            following[start] = [count] if rows[last, GUARD] == NONE else [count, after]
        else:
            following[start] = [after]
    immediate = _post_dominators(starts, following, count)
    for start in starts:
        last = ends[start] - 1
        if rows[last, OP] == Op.BRANCH and rows[last, GUARD] != NONE:
            meet = immediate.get(start, count)
            rows[last, JOIN] = NONE if meet == count else meet


def _post_dominators(starts: list[int], following: dict[int, list[int]], end: int) -> dict[int, int]:
    """The immediate post-dominator of each block (Cooper, Harvey and Kennedy's algorithm on the reversed graph)."""
    before: dict[int, list[int]] = {end: []}
    for start in starts:
        before.setdefault(start, [])
    for start, nexts in following.items():
        for follower in nexts:
            before[follower].append(start)
    order, seen = [], {end}
    stack = [(end, iter(before[end]))]
    while stack:
        node, parents = stack[-1]
        for parent in parents:
            if parent not in seen:
                seen.add(parent)
                stack.append((parent, iter(before[parent])))
                break
        else:
            order.append(node)
            stack.pop()
    rank = {node: place for place, node in enumerate(order)}
    immediate = {end: end}
    changed = True
    while changed:
        changed = False
        for node in reversed(order[:-1]):
            new = None
            for follower in following[node]:
                if follower in immediate:
                    new = follower if new is None else _meet(new, follower, immediate, rank)
            if new is not None and immediate.get(node) != new:
                immediate[node] = new
                changed = True
    return immediate


def _meet(a: int, b: int, immediate: dict[int, int], rank: dict[int, int]) -> int:
    while a != b:
        while rank[a] < rank[b]:
            a = immediate[a]
        while rank[b] < rank[a]:
            b = immediate[b]
    return a
