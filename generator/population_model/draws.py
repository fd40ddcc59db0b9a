"""Randomness by purpose: each layer, and each day of browsing, has a generator of its own.

Generators are made from `SeedSequence(seed, spawn_key=(purpose, ...))`, the keys `SeedSequence.spawn` would give out, but named
instead of counted. So nothing depends on the order in which days are generated or on what else was drawn before, and two processes
agree byte for byte. The draws are those of numpy's PCG64; numpy may change a distribution's stream between minor versions, which the
lock file pins.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What is drawn. The numbers are part of the output: never change one, only add."""

    ARRIVALS = 1
    RATES = 2
    PURCHASES = 3
    SPEND = 4
    BASKETS = 5
    JOURNEYS = 6
    ORDER_LIFE = 7
    PROFILES = 8
    STOCK = 9
    BROWSING = 10
    IDS = 11
    PEOPLE = 12


def generator_for(seed: int, purpose: Purpose, *where: int) -> np.random.Generator:
    """The generator of a purpose.

    Args:
        seed: of the population, 0 or above.
        purpose: what is drawn.
        where: finer keys, e.g. the day.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(int(purpose), *where))))
