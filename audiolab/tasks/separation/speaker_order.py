"""Which output of each chunk is which speaker: Viterbi over all orders, decided while the recording is still read.

An order is a permutation: `order[c]` is the output (slot) of a chunk that holds speaker c.
Shapes: c speaker, s slot, p order, of which there are num_speakers!.
"""

from __future__ import annotations

from collections import deque
from itertools import permutations

import numpy as np

_STAY = 1e-9  # where nothing speaks for a change of the order, it stays


class OrderDecoder:
    """The orders of a chain of chunks with the largest sum of scores, at most `delay` chunks after each chunk.

    The score of a path is the sum over neighbours of what their outputs have in common (`link_ss`: slot of the chunk
    before x slot of this) and of how well an output fits a speaker (`fit_cs`). The first chunk names the speakers. A
    chunk is decided once all paths that are still possible agree on it, and the orders are then those of the Viterbi
    algorithm over the whole recording. Where they do not agree within `delay` chunks the best path decides, and those
    that contradict it are given up, so that memory is bounded and the output never contradicts itself.

    >>> decoder = OrderDecoder(2, delay=3)
    >>> swapped = np.array([[0.1, 0.9], [0.8, 0.0]])
    >>> [[order.tolist() for order in decoder.push(*scores)] for scores in ((None, None), (swapped, None))]
    [[[0, 1]], []]
    >>> [order.tolist() for order in decoder.finish()]
    [[1, 0]]
    """

    def __init__(self, num_speakers: int, delay: int) -> None:
        assert delay >= 0
        self.delay = delay
        self._orders_pc = np.array(list(permutations(range(num_speakers))))
        self._speakers = np.arange(num_speakers)
        self._score_p: np.ndarray | None = None
        self._pending: deque[np.ndarray] = deque()  # of each undecided chunk: the best order before, for each order

    def push(self, link_ss: np.ndarray | None = None, fit_cs: np.ndarray | None = None) -> list[np.ndarray]:
        """Add a chunk; returns the orders of chunks decided by now, oldest first. The first chunk has no scores."""
        orders_pc = self._orders_pc
        if self._score_p is None:
            self._score_p = np.full(len(orders_pc), -np.inf)
            self._score_p[0] = 0.0
            return [orders_pc[0]]
        assert link_ss is not None
        link_ss = link_ss + _STAY * np.eye(len(link_ss))
        score_pp = self._score_p[:, None] + link_ss[orders_pc[:, None], orders_pc[None]].sum(-1)
        before_p = score_pp.argmax(0)
        self._score_p = score_pp.max(0)
        if fit_cs is not None:
            self._score_p = self._score_p + fit_cs[self._speakers, orders_pc].sum(-1)
        self._score_p -= self._score_p.max()
        self._pending.append(before_p)
        return self._decide()

    def finish(self) -> list[np.ndarray]:
        """Return the orders of the chunks not decided yet: the recording has ended, so the best path decides."""
        if not self._pending:
            return []
        path = [int(self._score_p.argmax())]
        for before_p in reversed(list(self._pending)[1:]):
            path.append(int(before_p[path[-1]]))
        self._pending.clear()
        return [self._orders_pc[state] for state in reversed(path)]

    def _decide(self) -> list[np.ndarray]:
        """Decide what all paths share, and where that is too little the oldest chunk by the best path."""
        states_p = np.flatnonzero(np.isfinite(self._score_p))
        traced = [states_p]  # of each undecided chunk, newest first: where each path passes through it
        for before_p in reversed(list(self._pending)[1:]):
            traced.append(before_p[traced[-1]])
        decided = []
        for through_p in reversed(traced):
            if len(set(through_p.tolist())) > 1:
                break
            decided.append(int(through_p[0]))
        if not decided and len(traced) > self.delay:
            best = int(traced[-1][self._score_p[states_p].argmax()])
            self._score_p[states_p[traced[-1] != best]] = -np.inf
            return self._decide()
        for _ in decided:
            self._pending.popleft()
        return [self._orders_pc[state] for state in decided]
