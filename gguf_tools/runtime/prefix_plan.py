"""The order in which token sequences with shared prefixes are decoded, so that every prefix is decoded once.

The sequences form a radix tree: a node holds tokens that the same sequences share. Subtrees that fit into a block are decoded
together, level by level, each node in a llama.cpp sequence of its own that starts as a copy of its parent's. Copies are made
before anything is appended, and no sequence is ever shortened, so that the plan also holds for recurrent states, which cannot
be rolled back. Pure: nothing here calls llama.cpp.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from gguf_tools.runtime.batches import Part, Row

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Request:
    """A sequence of token ids of which the last `scored` are predicted, each from all before it."""

    tokens: Tokens
    scored: int


@dataclass(frozen=True)
class Step:
    """In this order: copy sequences (source, target), append the parts (in as many batches as needed), remove sequences."""

    copies: tuple[tuple[int, int], ...]
    parts: tuple[Part, ...]
    drops: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Number of tokens appended."""
        return sum(len(part.tokens) for part in self.parts)


@dataclass(frozen=True)
class Plan:
    """The steps, and what they need: sequences, cells (tokens held at a time in one cache), tokens decoded in total."""

    steps: tuple[Step, ...]
    sequences: int
    cells: int

    @property
    def tokens(self) -> int:
        """Number of tokens decoded."""
        return sum(step.tokens for step in self.steps)


@dataclass(eq=False)
class _Node:
    """Tokens `start` to `end` of the sequence `tokens`, shared by all requests below; `size` and `leaves` count its subtree."""

    tokens: Tokens
    start: int
    end: int
    parent: _Node | None
    children: list[_Node] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    size: int = 0
    leaves: int = 0


def plan(requests: Sequence[Request], most_tokens: int, most_sequences: int) -> Plan:
    """The steps that decode every request's tokens but its last, each shared prefix once.

    A block that is decoded together has at most `most_tokens` tokens in at most `most_sequences` sequences, except for a
    single node longer than that.
    """
    root = _tree(requests)
    _measure(root)
    scheduler = _Scheduler(most_tokens, most_sequences)
    scheduler.run(root)
    return Plan(tuple(scheduler.steps), scheduler.sequences, scheduler.cells)


def sorted_order(sequences: Sequence[Sequence[int] | Tokens]) -> list[int]:
    """Indices of the sequences in lexicographic order, which puts those with long shared prefixes side by side."""
    keys = [np.asarray(sequence, dtype=">u4").tobytes() for sequence in sequences]
    return sorted(range(len(keys)), key=keys.__getitem__)


def common_prefix(first: Tokens, second: Tokens) -> int:
    """The number of tokens that two sequences share at their beginning."""
    length = min(len(first), len(second))
    differing = np.flatnonzero(first[:length] != second[:length])
    return int(differing[0]) if differing.size else length


def _tree(requests: Sequence[Request]) -> _Node:
    """The radix tree of the requests' tokens without the last, with each wanted row at the node that holds its token."""
    inputs = [request.tokens[:-1] for request in requests]
    root = top = _Node(np.zeros(0, dtype=np.int32), 0, 0, None)
    last = root.tokens
    ends: dict[int, _Node] = {}
    for index in sorted_order(inputs):
        tokens = inputs[index]
        shared = common_prefix(last, tokens)
        while top.end > shared and top.start >= shared and top.parent is not None:
            top = top.parent
        if top.end > shared:
            top = _split(top, shared)
        if len(tokens) > shared:
            node = _Node(tokens, shared, len(tokens), top)
            top.children.append(node)
            top = node
        ends[index] = top
        last = tokens
    for index, request in enumerate(requests):
        first = len(request.tokens) - request.scored - 1  # the position whose logits predict the first scored token
        holder: _Node | None = ends[index]
        while holder is not None and holder.end > first:
            for position in range(max(first, holder.start), holder.end):
                holder.rows.append(Row(position - holder.start, index, int(request.tokens[position + 1])))
            holder = holder.parent
    return root


def _split(node: _Node, at: int) -> _Node:
    """Cut a node in two at position `at`; returns the new upper part, which has taken its place below the parent."""
    upper = _Node(node.tokens, node.start, at, node.parent, [node])
    if node.parent is not None:
        node.parent.children[-1] = upper
    node.parent, node.start = upper, at
    return upper


def _measure(root: _Node) -> None:
    """Count tokens and leaves of every subtree, and order rows by offset."""
    order = [root]
    for node in order:
        order.extend(node.children)
    for node in reversed(order):
        node.rows.sort(key=lambda row: row.offset)
        node.size = node.end - node.start + sum(child.size for child in node.children)
        node.leaves = sum(child.leaves for child in node.children) or 1


class _Scheduler:
    """Collects the steps; hands out sequence numbers, lowest first."""

    def __init__(self, most_tokens: int, most_sequences: int) -> None:
        self.steps: list[Step] = []
        self.sequences = 0
        self.cells = 0
        self._most_tokens = most_tokens
        self._most_sequences = most_sequences
        self._free: list[int] = []

    def run(self, root: _Node) -> None:
        """Decode the tree. A stack instead of recursion, because one node may follow another thousands of times."""
        todo: list[tuple[list[_Node], int, bool]] = [([root], self._take(), True)]
        while todo:
            nodes, sequence, inherits = todo.pop()
            if len(nodes) > 1 or self._fits(nodes):
                self._block(nodes, sequence, inherits)
                continue
            (node,) = nodes
            copies: tuple[tuple[int, int], ...] = ()
            if not inherits:
                copies = ((sequence, self._take()),)
                sequence = copies[0][1]
            groups = self._groups(node.children)
            drops = () if groups else (sequence,)
            self._add(copies, [(node, sequence)], drops)
            self.cells = max(self.cells, node.end)
            # The last group, with the largest subtree, continues the node's own sequence: at most log2(tokens) copies are held.
            todo.extend((group, sequence, number == 0) for number, group in enumerate(reversed(groups)))

    def _fits(self, nodes: Sequence[_Node]) -> bool:
        return (
            sum(node.size for node in nodes) <= self._most_tokens
            and sum(node.leaves for node in nodes) <= self._most_sequences
        )

    def _groups(self, children: Sequence[_Node]) -> list[list[_Node]]:
        """The children in groups that fit into a block, then those too large for one, by size."""
        groups: list[list[_Node]] = []
        large = []
        for child in children:
            if not self._fits([child]):
                large.append(child)
            elif groups and self._fits([*groups[-1], child]):
                groups[-1].append(child)
            else:
                groups.append([child])
        return groups + [[child] for child in sorted(large, key=lambda node: node.size)]

    def _block(self, nodes: Sequence[_Node], sequence: int, inherits: bool) -> None:
        """Decode subtrees level by level, all starting from `sequence`, which the last of them continues if `inherits`."""
        self.cells = max(self.cells, nodes[0].start + sum(node.size for node in nodes))
        families = [(sequence, list(nodes), inherits)]
        while families:
            copies: list[tuple[int, int]] = []
            placed: list[tuple[_Node, int]] = []
            for source, members, last_inherits in families:
                for number, node in enumerate(members):
                    own = source
                    if not (last_inherits and number == len(members) - 1):
                        own = self._take()
                        copies.append((source, own))
                    placed.append((node, own))
            families = [(own, node.children, True) for node, own in placed if node.children]
            self._add(tuple(copies), placed, tuple(own for node, own in placed if not node.children))

    def _add(
        self, copies: tuple[tuple[int, int], ...], placed: Sequence[tuple[_Node, int]], drops: tuple[int, ...]
    ) -> None:
        parts = tuple(
            Part(sequence, node.start, node.tokens[node.start : node.end], tuple(node.rows))
            for node, sequence in sorted(placed, key=lambda item: item[1])
            if node.end > node.start
        )
        self.steps.append(Step(copies, parts, drops))
        for sequence in drops:
            heapq.heappush(self._free, sequence)

    def _take(self) -> int:
        if self._free:
            return heapq.heappop(self._free)
        self.sequences += 1
        return self.sequences - 1
