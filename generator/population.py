"""Who shops and what is for sale: customers and products, made once from pools.

Faker makes the pools; nothing here is called per event, because Faker gives about 900 texts a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

CATEGORIES = ("Kitchen", "Garden", "Lighting", "Stationery", "Toys", "Textiles", "Bath", "Storage", "Seasonal", "Jewellery")
_THINGS = ("Mug", "Lantern", "Tray", "Cushion", "Bunting", "Notebook", "Candle", "Basket", "Frame", "Clock", "Bowl", "Apron", "Tin", "Hook")
_MATERIALS = ("Oak", "Enamel", "Glass", "Linen", "Felt", "Copper", "Ceramic", "Paper", "Wicker", "Cotton", "Slate", "Brass")
_COUNTRIES = ("United Kingdom", "Ireland", "France", "Germany", "Netherlands", "Spain")
_COUNTRY_WEIGHTS = (82, 6, 4, 4, 2, 2)

_DAY_US = 86_400 * 1_000_000


@dataclass(frozen=True, slots=True)
class Item:
    """A product; `pence` is its list price, `weight` its share of the demand."""

    product_id: str
    name: str
    category: str
    pence: int
    stock: int
    active: bool
    weight: float


@dataclass(frozen=True, slots=True)
class Shopper:
    """A customer; `signed_up_us` in microseconds since 1970 UTC, `weight` the share of the orders."""

    customer_id: str
    visitor_id: str
    email: str
    country: str
    grade: str
    signed_up_us: int
    consent_email: bool | None
    consent_ads: bool | None
    consent_analytics: bool | None
    opted_out: bool
    weight: float


def make_items(count: int, seed: int) -> tuple[Item, ...]:
    """Products with Zipf-like demand.

    Args:
        count: how many, at least 1.
        seed: the same seed gives the same products.
    """
    from faker import Faker

    fake = Faker("en_GB")
    fake.seed_instance(seed)
    colours = [fake.unique.color_name() for _ in range(100)]
    random = Random(seed * 2 + 1)
    return tuple(
        Item(
            product_id=f"P{number:05d}",
            name=f"{random.choice(colours)} {random.choice(_MATERIALS)} {random.choice(_THINGS)}",
            category=random.choice(CATEGORIES),
            pence=max(29, min(24_999, round(random.lognormvariate(6.2, 0.9)))),
            stock=random.randrange(0, 2_000),
            active=random.random() < 0.97,
            weight=1 / (number + 5) ** 0.8,
        )
        for number in range(1, count + 1)
    )


def make_shoppers(count: int, seed: int, start_us: int, end_us: int) -> tuple[Shopper, ...]:
    """Customers, half of whom signed up in the year before the window and half during it.

    Args:
        count: how many, at least 1.
        seed: the same seed and window give the same customers.
        start_us: begin of the window, microseconds since 1970 UTC.
        end_us: end of the window.
    """
    from faker import Faker

    fake = Faker("en_GB")
    fake.seed_instance(seed)
    first = [fake.first_name().lower() for _ in range(200)]
    last = [fake.last_name().lower().replace("'", "").replace(" ", "") for _ in range(200)]
    random = Random(seed * 2 + 2)
    shoppers = []
    for number in range(1, count + 1):
        weight = random.gammavariate(0.6, 1.0) + 0.02
        earlier = random.random() < 0.5
        low, high = (start_us - 365 * _DAY_US, start_us) if earlier else (start_us, max(start_us + 1, end_us - _DAY_US))
        shoppers.append(
            Shopper(
                customer_id=f"C{number:06d}",
                visitor_id=f"V{number:06d}",
                email=f"{random.choice(first)}.{random.choice(last)}.{number}@example.com",
                country=random.choices(_COUNTRIES, _COUNTRY_WEIGHTS)[0],
                grade="platinum" if weight > 2.5 else "gold" if weight > 1.5 else "silver" if weight > 0.7 else "bronze",
                signed_up_us=random.randrange(low, high),
                consent_email=_maybe(random, 0.7),
                consent_ads=_maybe(random, 0.45),
                consent_analytics=_maybe(random, 0.8),
                opted_out=random.random() < 0.03,
                weight=weight,
            )
        )
    return tuple(shoppers)


def _maybe(random: Random, share: float) -> bool | None:
    """A consent: yes in the given share, never asked in a twentieth."""
    drawn = random.random()
    return None if drawn < 0.05 else drawn < 0.05 + 0.95 * share
