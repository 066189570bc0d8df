"""The order of a graph whose loops are one item each."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict

from wolong_fx.passes.reroll.graph_arrays import GraphArrays
from wolong_fx.passes.reroll.loop import Loop

Item = int | Loop


def order_items(arrays: GraphArrays, loops: list[Loop]) -> list[Item]:
    """Calls and loops, each after all it needs, otherwise as they stood; random draws keep their order.

    Raises ValueError when two loops need each other: find_flaw lets no such loop pass.
    """
    loop_at = {min(loop.nodes): loop for loop in loops}
    stands_for = {node: first for first, loop in loop_at.items() for node in loop.nodes}
    followers, needs = _contract(arrays, stands_for)
    items = {stands_for.get(node, node) for node in arrays.live}
    ready = [item for item in items if not needs[item]]
    heapq.heapify(ready)
    ordered: list[Item] = []
    while ready:
        item = heapq.heappop(ready)
        ordered.append(loop_at.get(item, item))
        for follower in followers[item]:
            needs[follower] -= 1
            if not needs[follower]:
                heapq.heappush(ready, follower)
    if len(ordered) != len(items):
        raise ValueError("loops that need each other")
    return ordered


def _contract(arrays: GraphArrays, stands_for: dict[int, int]) -> tuple[dict[int, list[int]], Counter[int]]:
    followers, needs = defaultdict(list), Counter[int]()
    for node in arrays.live:
        item = stands_for.get(node, node)
        for needed in arrays.needed_by(node):
            earlier = stands_for.get(needed, needed)
            if earlier != item and not arrays.is_leaf[earlier]:
                followers[earlier].append(item)
                needs[item] += 1
    return followers, needs
