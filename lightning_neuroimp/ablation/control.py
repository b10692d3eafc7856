"""The random control: each score's own rankings, with the names of the neurons permuted.

A draw permutes the names of a site's neurons once, in the rankings of all clusters and both halves alike. If a score
knows nothing of the neurons, its rankings with their real names are one draw among these: whatever the rankings of
several clusters have in common, and whatever removal takes from one class and gives to another, is the same in all of
them. (One random order for all clusters is not like that: what one cluster gains there may offset what another loses in
each draw, while rankings that differ between clusters do not.)

Several scores need draws of their own, but not always sets of neurons of their own. Scores with equal rankings share
draws. The others take the first score's permutation, after another one that is chosen by looking at both scores'
rankings alone, never at outcomes: whatever that is, each permutation remains as likely as any other, whatever the
score's rankings are. It is chosen so that many sets of neurons are those that the first score's draw removes anyway:
none at all, so that scores that agree remove the same, or the one that turns the score's ranking in one cell into the
first score's, in another cell in each draw.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

MAX_ENUMERATED = 23
"""Where names have at most so many permutations besides the real ones, all are tried, also if fewer were asked for."""

MAX_MATCHED_CELLS = 8
"""Largest number of cells of which one is made to remove the first score's sets in each draw: with more, little is
saved."""


class RandomControl:
    """Make the random orders of one site, and know which of the outcomes are theirs.

    Where there are few neurons, all permutations of their names are tried, but for the real ones.

    Attributes:
        removed: number of removed neurons at each point of the curves.
        n_neurons: number of all neurons.
        n_draws: number of random orders for each score, unless all is decided before.
        exhaustive: whether these are all orders that there are, besides the real one.
        seed: of the permutations, and of the resampling.
        every_run: places of all random orders among the outcomes, whichever score they are of.

    Args:
        rankings: neurons in the order in which each score removes them, one row per cell.
        removed: number of removed neurons at each point of the curves.
        n_draws: number of random orders for each score.
        seed: of the permutations, and of the resampling.
    """

    def __init__(
        self,
        rankings: Sequence[Int[np.ndarray, "cell neuron"]],
        removed: Int[np.ndarray, " point"],
        n_draws: int,
        seed: Sequence[int],
    ) -> None:
        n_neurons = rankings[0].shape[1]
        self.removed, self.seed, self.n_neurons = removed, tuple(seed), n_neurons
        self.n_draws = n_draws = number_of_draws(n_draws, n_neurons)
        self.exhaustive = n_draws == _n_other_orders(n_neurons)
        generator = np.random.default_rng(list(seed))
        # small numbers: there are as many orders as draws and scores, with a row for each cell
        self._names = np.empty((n_draws, n_neurons), np.min_scalar_type(-n_neurons))
        if self.exhaustive:
            self._names[:] = list(itertools.permutations(range(n_neurons)))[1:]  # the first one is the real one
        for draw in () if self.exhaustive else self._names:
            draw[:] = generator.permutation(n_neurons)
        self.every_run: list[int] = []
        self._rankings: list[Int[np.ndarray, "cell neuron"]] = []  # those that differ
        self._which: list[int] = []  # number of each score's ranking among them
        for ranking in rankings:
            same = [number for number, known in enumerate(self._rankings) if np.array_equal(known, ranking)]
            self._which.append(same[0] if same else len(self._rankings))
            self._rankings += [] if same else [ranking]
        # what each draw permutes before its names are given, of each ranking
        self._matched = [
            [ranking] * n_draws
            if self.exhaustive  # the sets are the same anyway, and what suits another score may be the real names
            else matching_rankings(self._rankings[0], ranking, removed, n_draws)
            for ranking in self._rankings
        ]
        self._runs: list[list[int]] = [[] for _ in self._rankings]
        self._drawn: list[tuple[int, int]] = []  # number of the ranking and of the draw of each of `every_run`

    @property
    def made(self) -> int:
        """Return the number of draws of which there is an order of any score."""
        return 1 + max(self.draw_of_run, default=-1)

    @property
    def draw_of_run(self) -> list[int]:
        """Return the number of the draw of each of `every_run`."""
        return [draw for _, draw in self._drawn]

    def runs(self, score: int) -> list[int]:
        """Return the places of a score's random orders among the outcomes.

        Args:
            score: its place among the rankings.
        """
        return self._runs[self._which[score]]

    def tie_probability(self, score: int, cells: Sequence[int]) -> float:
        """Return the share of all permutations of the names that leave every set as it is that a score removes.

        No p-value of the score's gap can be below it: these orders tie with the score's own.

        Args:
            score: its place among the rankings.
            cells: those whose samples count.
        """
        ranking = self._rankings[self._which[score]][list(cells)]
        # removed before the first point, between two points, after the last one: in each cell
        block = np.searchsorted(self.removed, np.argsort(ranking, axis=1), side="right")
        # neurons that no cell tells apart can change places
        _, alike = np.unique(block, axis=1, return_counts=True)
        ways = sum(math.lgamma(number + 1) for number in alike.tolist()) - math.lgamma(self.n_neurons + 1)
        return math.exp(ways) if len(ranking) else 1.0

    def extend(self, scores: Sequence[int], total: int, place: int) -> list[Int[np.ndarray, "cell neuron"]]:
        """Return further random orders of some scores, so that each of them has a number of orders in all.

        Args:
            scores: their places among the rankings.
            total: number of orders that each of them has then.
            place: of the first of these orders among the outcomes.
        """
        orders: list[Int[np.ndarray, "cell neuron"]] = []
        for number in sorted({self._which[score] for score in scores}):
            for draw in range(len(self._runs[number]), total):
                self._runs[number].append(place + len(orders))
                self.every_run.append(place + len(orders))
                self._drawn.append((number, draw))
                orders.append(self._names[draw][self._matched[number][draw]])
        return orders

    def order(self, score: int, draw: int) -> Int[np.ndarray, "cell neuron"]:
        """Return one random order of a score.

        Args:
            score: its place among the rankings.
            draw: number of the draw.
        """
        return self._names[draw][self._matched[self._which[score]][draw]]

    def masks(self, cell: int, count: int) -> Bool[np.ndarray, "run neuron"]:
        """Return which neurons are removed from the samples of a cell in each of `every_run`.

        Args:
            cell: its number.
            count: number of removed neurons.
        """
        masks = np.zeros((len(self._drawn), self._names.shape[1]), bool)
        for mask, (number, draw) in zip(masks, self._drawn, strict=True):
            mask[self._names[draw][self._matched[number][draw][cell, :count]]] = True
        return masks


def number_of_draws(n_random: int, n_neurons: int) -> int:
    """Return the number of random orders that are made for each score: those asked for, or all that there are.

    Args:
        n_random: number that is asked for.
        n_neurons: number of neurons at the site.

    >>> [number_of_draws(19, n_neurons) for n_neurons in (2, 3, 4, 5)]
    [1, 5, 23, 19]
    """
    every = _n_other_orders(n_neurons)
    return every if 0 < every <= max(n_random, MAX_ENUMERATED) else n_random


def _n_other_orders(n_neurons: int) -> int:
    """Return the number of permutations of the names besides the real ones; very large where there are many."""
    return math.factorial(min(n_neurons, 20)) - 1


def matching_rankings(
    first: Int[np.ndarray, "cell neuron"],
    ranking: Int[np.ndarray, "cell neuron"],
    removed: Int[np.ndarray, " point"],
    n_draws: int,
) -> list[Int[np.ndarray, "cell neuron"]]:
    """Permute a ranking's names for each draw, so that many of its sets of neurons are those of the first ranking.

    Only rankings decide how; what removal does is not known here.

    Args:
        first: the first score's ranking.
        ranking: another score's.
        removed: number of removed neurons at each point.
        n_draws: number of draws.

    Returns:
        The ranking as it is, or with the names that turn one of its cells into the first score's, for each draw.

    >>> one, other = np.array([[0, 1, 2], [0, 1, 2]]), np.array([[2, 1, 0], [1, 0, 2]])
    >>> [matched.tolist() for matched in matching_rankings(one, other, np.array([1, 2]), 2)]
    [[[0, 1, 2], [1, 2, 0]], [[2, 0, 1], [0, 1, 2]]]
    """
    candidates = [ranking]
    if len(first) <= MAX_MATCHED_CELLS:
        candidates += [own[np.argsort(row)][ranking] for own, row in zip(first, ranking, strict=True)]
    if len(candidates) == 1:
        return candidates * n_draws
    same = [
        [(np.sort(candidate[:, :count]) == np.sort(first[:, :count])).all(1) for count in removed]
        for candidate in candidates
    ]
    saved = np.sum(same, axis=1)  # sets that need no pass of their own, (candidate, cell)
    total, chosen = np.zeros(len(first), np.int64), []
    for _ in range(n_draws):
        # the cell that needs most passes decides how many there are
        best = max(range(len(candidates)), key=lambda place: tuple(np.sort(total + saved[place])))
        total += saved[best]
        chosen.append(candidates[best])
    return chosen
