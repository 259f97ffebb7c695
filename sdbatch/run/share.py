"""Which shard a worker tries next: its own share of the plan, then what is left, nearest to the weights it holds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from sdbatch.results.folder import GROUP_SHARDS
from sdbatch.run.claim import Claims

LINGERING = 8
"""The first so many workers wait for the others' last shards, to take over those of the dead; the rest leave at once."""
LOOKS_PER_LEASE = 8


class Share:
    """The order in which one worker of several goes through a plan.

    Its own share is one stretch of the plan: neighbours use the same weights, so each set of weights is loaded by few
    workers. Without contention that is all; what is left of other shares is then tried, the same weights first.
    """

    def __init__(self, claims: Claims, recipes: Sequence[int], index: int, workers: int) -> None:
        """`recipes` is the recipe of each shard."""
        self.claims = claims
        self.recipes = recipes
        self.index = index
        self.workers = max(workers, 1)
        self._random = random.Random(claims.worker)
        self._finished: set[int] = set()
        """Groups in which nothing is left."""

    def iter_claimed(self, pause: Callable[[float], None]) -> Iterator[int]:
        """Shards, each claimed for this worker, until none is left; `pause` waits so many seconds and may raise."""
        last: int | None = None
        for shard in self._own():
            if self.claims.take(shard):
                yield shard
                last = shard
        while self.claims.are_open:
            free, held = self._look()
            took = False
            for shard in self._by_nearness(free, last):
                if self.claims.take(shard):
                    yield shard
                    last, took = shard, True
            for shard in held:
                if self.claims.take_over(shard):
                    yield shard
                    last, took = shard, True
            if took:
                continue
            if not any(self.claims.is_waited_for(shard) for shard in held) or self.index >= LINGERING:
                return
            pause(self.claims.lease_s / LOOKS_PER_LEASE)

    def _own(self) -> Iterator[int]:
        """The shards of the own share that nobody has begun."""
        count = len(self.recipes)
        first, last = (count * place // self.workers for place in (self.index % self.workers, self.index % self.workers + 1))
        for group, shards in groupby(range(first, last), key=lambda shard: shard // GROUP_SHARDS):
            state = self.claims.read_group(group)
            yield from (shard for shard in shards if shard not in state.done and shard not in state.held)

    def _look(self) -> tuple[list[int], list[int]]:
        """The shards that are free, and those that others hold."""
        free: list[int] = []
        held: list[int] = []
        count = len(self.recipes)
        for group in range(-(-count // GROUP_SHARDS)):
            if group in self._finished:
                continue
            shards = range(group * GROUP_SHARDS, min(count, (group + 1) * GROUP_SHARDS))
            state = self.claims.read_group(group)
            if len(state.done) == len(shards):
                self._finished.add(group)
            free += [shard for shard in shards if shard not in state.done and shard not in state.held]
            held += sorted(shard for shard in state.held if not self.claims.holds(shard))
        return free, held

    def _by_nearness(self, shards: Sequence[int], last: int | None) -> Iterator[int]:
        """The same weights first, then recipe by recipe, the fuller the likelier; shuffled, so that few try the same."""
        by_recipe: dict[int, list[int]] = {}
        for shard in shards:
            by_recipe.setdefault(self.recipes[shard], []).append(shard)
        held = self.recipes[last] if last is not None else None
        for recipe in sorted(by_recipe, key=lambda recipe: (recipe != held, -len(by_recipe[recipe]) * self._random.random())):
            yield from self._random.sample(by_recipe[recipe], len(by_recipe[recipe]))
