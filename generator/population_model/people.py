"""Names and countries of the customers, from small pools: Faker makes the pools and nothing more, being slow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from generator.population_model.draws import Purpose, generator_for

COUNTRIES = ("United Kingdom", "Ireland", "France", "Germany", "Netherlands", "Spain")
_COUNTRY_BOUNDS = (0.82, 0.88, 0.92, 0.96, 0.98)
_POOL = 200


@dataclass(frozen=True)
class People:
    """Texts of each customer by number; `mailbox` is the part of the address before the customer's number."""

    mailbox: list[str]
    country: list[str]

    def email(self, customer: int, address: int) -> str:
        """The customer's address; `address` counts changes of it from 0."""
        return f"{self.mailbox[customer]}.{customer + 1}{f'.{address}' if address else ''}@example.com"


def make_people(count: int, seed: int) -> People:
    """Draw names and countries.

    Args:
        count: how many customers.
        seed: the same seed gives the same people.
    """
    from faker import Faker

    fake = Faker("en_GB")
    fake.seed_instance(seed)
    first = [fake.first_name().lower() for _ in range(_POOL)]
    last = [fake.last_name().lower().replace("'", "").replace(" ", "") for _ in range(_POOL)]
    random = generator_for(seed, Purpose.PEOPLE)
    names = random.integers(0, _POOL, (count, 2)).tolist()
    countries = np.searchsorted(_COUNTRY_BOUNDS, random.random(count), side="right").tolist()
    return People([f"{first[f]}.{last[n]}" for f, n in names], [COUNTRIES[c] for c in countries])
