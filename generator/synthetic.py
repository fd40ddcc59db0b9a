"""A made-up shop: sessions, orders, follow-ups, cancellations and refunds over a window that ends now, and live traffic after it.

Coherent rather than deep: every order's customer and products exist, every purchase event names its order, every cancellation
its order. The same seed, sizes and `now` give the same bytes. Belongs here: what happens when. Not here: who shops
(`population`), the wire (`encode`), faults (`defects`), pacing (`pacing`).
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from itertools import accumulate
from random import Random
from typing import Any

from generator.encode import Draft, Encoder, Piece, Step, joined, pounds, text_piece, wire_time
from generator.ids import epoch_microseconds, epoch_milliseconds
from generator.population import Item, Shopper, make_items, make_shoppers
from generator.records import Outgoing

SOURCE = "synthetic"
CURRENCY = "GBP"

_SECOND = 1_000_000
_MINUTE = 60 * _SECOND
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR
_HOUR_WEIGHTS = (2, 1, 1, 1, 1, 2, 4, 6, 8, 10, 12, 13, 14, 13, 12, 11, 11, 11, 12, 13, 13, 11, 8, 4)
_CHANNELS = ("web", "web", "app", "mail")
_VIEW, _CLICK, _SEARCH, _CART = (text_piece({"event_type": kind}) for kind in ("view", "click", "search", "cart"))
_ITEMS_OF_A_VISIT = (1, 1, 1, 1, 2, 2, 2, 3, 3, 4)
_BASE36 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class ShopOptions:
    """Sizes and shares of the made-up shop. Shares lie between 0 and 1."""

    seed: int = 1
    customers: int = 2_000
    products: int = 300
    orders: int = 12_000
    events: int = 60_000
    days: int = 120
    guest_share: float = 0.10
    cancelled_share: float = 0.04
    refunded_share: float = 0.02
    paid_share: float = 0.60
    shipped_share: float = 0.40
    tracked_share: float = 0.25

    def __post_init__(self) -> None:
        for name in ("customers", "products", "days"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("orders", "events"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")


def run_id_of(options: ShopOptions, now: datetime) -> str:
    """Run id of a synthetic run: seed and start."""
    return f"synthetic-{options.seed}-{now:%Y%m%dT%H%M%S}"


@dataclass(frozen=True, slots=True)
class _Basket:
    """An order as it was placed; each line is (product, quantity)."""

    order_id: str
    shopper: Shopper | None
    visitor_id: str
    at_us: int
    channel: str
    lines: tuple[tuple[Item, int], ...]
    tracked: bool


class Shop:
    """The made-up shop of one run.

    Args:
        options: sizes, shares and the seed.
        now: end of the window; aware.
        run_id: written into each message; by default from seed and `now`.
    """

    def __init__(self, options: ShopOptions, now: datetime, run_id: str | None = None) -> None:
        self.options = options
        self.now = now
        self.run_id = run_id or run_id_of(options, now)
        self._end = epoch_microseconds(now)
        self._start = epoch_microseconds(now - timedelta(days=options.days))
        self._random = Random(options.seed)
        ids = Random(f"{options.seed}/{self.run_id}")
        self._encoder = Encoder(self.run_id, SOURCE, ids, epoch_milliseconds(now))
        self.encode_step = self._encoder.encode_step
        """Makes the record of a browsing step that happens at a time."""
        self._tag = _base36(self._end // _SECOND)
        self._orders = 0
        self._sessions = 0
        self._visitors: dict[str, Piece] = {}
        self._guests = 0

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """What is for sale."""
        return make_items(self.options.products, self.options.seed)

    @cached_property
    def shoppers(self) -> tuple[Shopper, ...]:
        """The known customers."""
        return make_shoppers(self.options.customers, self.options.seed, self._start, self._end)

    def history(self) -> Iterator[Outgoing]:
        """Everything that happened up to `now`, in the order of event time."""
        drafts = [*self._catalogue(), *self._profiles()]
        baskets = [self._basket(*when_and_who) for when_and_who in self._purchases()]
        room = self.options.events
        for basket in baskets:
            drafts.extend(d for d in self._order_messages(basket) if d.at_us <= self._end)
            if basket.tracked and room > 0:
                session = self._converting_session(basket)
                drafts.extend(session)
                room -= len(session)
        while room > 0:
            session = self._abandoned_session()[:room]
            drafts.extend(session)
            room -= len(session)
        drafts.sort(key=lambda d: d.at_us)
        for draft in drafts:
            yield self._encoder.encode(draft)

    def live(self, start: datetime, rate: float, count: int) -> Iterator[Outgoing]:
        """Traffic after the window: `count` records, the i-th happening at `start` + i / `rate` seconds.

        Args:
            start: time of the first record; aware.
            rate: records a second, above 0.
            count: how many records.
        """
        begin = epoch_microseconds(start)
        visits: list[list[Draft]] = []
        for index in range(count):
            at_us = begin + round(index / rate * _SECOND)
            if len(visits) < 20 or self._random.random() < 0.2:
                visits.append(self._visit(at_us))
            place = self._random.randrange(len(visits))
            step = visits[place].pop(0)
            if not visits[place]:
                del visits[place]
            yield self._encoder.encode(step, at_us)

    # single pieces, for traffic that is mixed elsewhere

    def encode(self, draft: Draft, at_us: int) -> Outgoing:
        """The record of a draft that happens at a time."""
        return self._encoder.encode(draft, at_us)

    def introductions(self) -> Iterator[Draft]:
        """Each product and each profile once; the times are given when they leave."""
        for item in self.items:
            yield Draft(self._end, "product", _product_fields(item, item.pence, item.stock, item.active))
        for shopper in self.shoppers:
            yield Draft(self._end, "profile", _profile_fields(shopper, shopper.consent_email, shopper.opted_out))

    def browsing(self, shopper: Shopper) -> list[Step]:
        """One visit without a purchase, in order."""
        random = self._random.random
        customer_id = shopper.customer_id
        known = self._visitors.get(customer_id)
        if known is None:
            known = self._visitors[customer_id] = text_piece({"visitor_id": shopper.visitor_id, "customer_id": customer_id})
        session = self._session_id()
        who = Piece(f'{known.wire},"session_id":"{session}"', f"{known.canonical},{len(session)}:{session}")
        steps = []
        pages, searching = self._pages[int(random() * len(_CHANNELS))]
        weights = self._item_weights
        most, last = weights[-1], len(weights) - 1
        place = 0
        for _ in range(_ITEMS_OF_A_VISIT[int(random() * len(_ITEMS_OF_A_VISIT))]):
            place = bisect(weights, random() * most, 0, last)
            drawn = random()
            if drawn < 0.92:
                steps.append(Step(customer_id, _VIEW if drawn < 0.8 else _CLICK, who, pages[place][0]))
            else:
                steps.append(Step(customer_id, _SEARCH, who, searching))
        if random() < 0.25:
            steps.append(Step(customer_id, _CART, who, pages[place][1]))
        return steps

    @cached_property
    def _pages(self) -> list[tuple[list[tuple[Piece, Piece]], Piece]]:
        """For each channel: what an event says of each product, on its page and in the cart, and of none."""

        def about(product_id: str | None, page: str, channel: str) -> Piece:
            return joined(text_piece({"product_id": product_id, "order_id": None, "page": page}), text_piece({"channel": channel}))

        return [
            (
                [(about(i.product_id, f"/p/{i.product_id}", c), about(i.product_id, "/cart", c)) for i in self.items],
                about(None, "/search", c),
            )
            for c in _CHANNELS
        ]

    def purchase(self, shopper: Shopper, *, with_session: bool) -> tuple[list[Draft], list[Draft]]:
        """A session that ends with a purchase, or none, and the states of its order; the times are given when they leave."""
        basket = self._basket(self._end, None if self._random.random() < self.options.guest_share else shopper)
        session = self._converting_session(basket) if with_session else []
        return session, [_order_draft(basket, self._end, status) for status in ("placed", "paid")]

    def profile_update(self, shopper: Shopper) -> Draft:
        """A customer who changes what is allowed."""
        return Draft(self._end, "profile", _profile_fields(shopper, self._random.random() < 0.7, shopper.opted_out))

    def product_update(self) -> Draft:
        """A product with a new price and stock."""
        item = self._random.choice(self.items)
        price = max(29, round(item.pence * self._random.uniform(0.8, 1.25)))
        return Draft(self._end, "product", _product_fields(item, price, self._random.randrange(2_000), item.active))

    # what is for sale, and to whom

    def _catalogue(self) -> Iterator[Draft]:
        for item in self.items:
            yield Draft(self._start - _DAY, "product", _product_fields(item, item.pence, item.stock, item.active))
            if self._random.random() < 0.1:
                price = max(29, round(item.pence * self._random.uniform(0.8, 1.25)))
                yield Draft(self._moment(), "product", _product_fields(item, price, self._random.randrange(2_000), item.active))

    def _profiles(self) -> Iterator[Draft]:
        for shopper in self.shoppers:
            yield Draft(shopper.signed_up_us, "profile", _profile_fields(shopper, shopper.consent_email, shopper.opted_out))
            if self._random.random() < 0.05:
                later = self._random.randrange(shopper.signed_up_us, self._end) + 1
                consent = not shopper.consent_email if shopper.consent_email is not None else True
                yield Draft(later, "profile", _profile_fields(shopper, consent, shopper.opted_out or self._random.random() < 0.2))

    # orders

    def _purchases(self) -> Iterator[tuple[int, Shopper | None]]:
        weights = list(accumulate(s.weight for s in self.shoppers))
        chosen = self._random.choices(self.shoppers, cum_weights=weights, k=self.options.orders)
        for shopper in chosen:
            if self._random.random() < self.options.guest_share:
                yield self._moment(), None
                continue
            at_us = self._moment()
            if at_us < shopper.signed_up_us:
                at_us = self._random.randrange(shopper.signed_up_us, self._end)
            yield at_us, shopper

    def _basket(self, at_us: int, shopper: Shopper | None) -> _Basket:
        self._orders += 1
        if shopper is None:
            self._guests += 1
        count = self._random.choices((1, 2, 3, 4, 5, 6), (30, 26, 18, 12, 8, 6))[0]
        lines = tuple((item, self._random.choices((1, 2, 3, 4, 6, 12), (50, 22, 10, 6, 8, 4))[0]) for item in self._pick_items(count))
        return _Basket(
            order_id=f"{self._tag}-{self._orders:06d}",
            shopper=shopper,
            visitor_id=shopper.visitor_id if shopper else f"G{self._tag}{self._guests:06d}",
            at_us=at_us,
            channel=self._random.choices(("web", "app", "phone"), (70, 25, 5))[0],
            lines=lines,
            tracked=self._random.random() < self.options.tracked_share,
        )

    def _order_messages(self, basket: _Basket) -> Iterator[Draft]:
        """The order as placed, its later states, and perhaps the document that takes it back."""
        draw = self._random
        yield _order_draft(basket, basket.at_us, "placed")
        if draw.random() < self.options.paid_share:
            paid = basket.at_us + draw.randrange(_MINUTE, 20 * _MINUTE)
            yield _order_draft(basket, paid, "paid")
            if draw.random() < self.options.shipped_share / max(self.options.paid_share, 1e-9):
                yield _order_draft(basket, paid + draw.randrange(4 * _HOUR, 3 * _DAY), "shipped")
        taken_back = draw.random()
        later = basket.at_us + draw.randrange(5 * _DAY, 14 * _DAY)
        if taken_back < self.options.cancelled_share:
            yield _return_draft(basket, later, "cancelled", basket.lines)
        elif taken_back < self.options.cancelled_share + self.options.refunded_share:
            item, quantity = draw.choice(basket.lines)
            yield _return_draft(basket, later, "refunded", ((item, draw.randrange(1, quantity + 1)),))

    # sessions

    def _converting_session(self, basket: _Basket) -> list[Draft]:
        """Built backwards from the purchase: payment, checkout, carts and views lie before it, each step within minutes."""
        customer = basket.shopper.customer_id if basket.shopper else None
        session = self._session_id()
        channel = basket.channel if basket.channel != "phone" else "web"
        order = basket.order_id
        steps: list[tuple[str, Item | None, str, str | None]] = [("purchase", None, "/thank-you", order), ("payment", None, "/pay", order)]
        steps.append(("checkout", None, "/checkout", None))
        bought = basket.lines[0][0]
        steps += [("cart", bought, "/cart", None), ("view", bought, f"/p/{bought.product_id}", None)]
        drafts = []
        at_us = basket.at_us
        for kind, item, page, order_id in steps:
            drafts.append(_event_draft(at_us, kind, basket.visitor_id, customer, session, item, page, channel, order_id))
            at_us -= self._random.randrange(5 * _SECOND, 4 * _MINUTE)
        return drafts[::-1]

    def _abandoned_session(self) -> list[Draft]:
        shopper = self._random.choice(self.shoppers)
        known = self._random.random() < 0.6
        at_us = self._moment()
        customer = shopper.customer_id if known and at_us >= shopper.signed_up_us else None
        return self._browse(at_us, shopper.visitor_id, customer)

    def _browse(self, at_us: int, visitor_id: str, customer: str | None) -> list[Draft]:
        session = self._session_id()
        channel = self._random.choice(_CHANNELS)
        drafts = []
        items = self._pick_items(_ITEMS_OF_A_VISIT[int(self._random.random() * len(_ITEMS_OF_A_VISIT))])
        for item in items:
            drawn = self._random.random()
            kind = "view" if drawn < 0.8 else "click" if drawn < 0.92 else "search"
            page = "/search" if kind == "search" else f"/p/{item.product_id}"
            drafts.append(_event_draft(at_us, kind, visitor_id, customer, session, None if kind == "search" else item, page, channel))
            at_us += self._random.randrange(3 * _SECOND, 5 * _MINUTE)
        if self._random.random() < 0.25:
            drafts.append(_event_draft(at_us, "cart", visitor_id, customer, session, items[-1], "/cart", channel))
        return [d for d in drafts if d.at_us <= self._end] or drafts[:1]

    def _visit(self, at_us: int) -> list[Draft]:
        """One live visit, in the order in which its records leave; the times are given when they do."""
        shopper = self._random.choice(self.shoppers)
        if self._random.random() < 0.02:
            return [Draft(at_us, "profile", _profile_fields(shopper, shopper.consent_email, shopper.opted_out))]
        if self._random.random() < 0.85:
            return self._browse(at_us, shopper.visitor_id, shopper.customer_id)
        basket = self._basket(at_us, None if self._random.random() < self.options.guest_share else shopper)
        session = self._converting_session(basket)
        return [*session, _order_draft(basket, at_us, "placed"), _order_draft(basket, at_us, "paid")]

    # draws

    def _moment(self) -> int:
        """A time in the window, in the shop's hours."""
        day = self._random.randrange(self.options.days)
        hour = self._random.choices(range(24), _HOUR_WEIGHTS)[0]
        midnight = (self._start // _DAY + day) * _DAY
        at_us = midnight + hour * _HOUR + self._random.randrange(_HOUR)
        return at_us if self._start <= at_us < self._end else self._random.randrange(self._start, self._end)

    def _pick_items(self, count: int) -> list[Item]:
        picked: dict[str, Item] = {}
        for item in self._random.choices(self.items, cum_weights=self._item_weights, k=count):
            picked.setdefault(item.product_id, item)
        return list(picked.values())

    @cached_property
    def _item_weights(self) -> list[float]:
        return list(accumulate(i.weight for i in self.items))

    def _session_id(self) -> str:
        self._sessions += 1
        return f"S{self._tag}{self._sessions:07d}"


def _product_fields(item: Item, pence: int, stock: int, active: bool) -> dict[str, Any]:
    return {
        "product_id": item.product_id,
        "name": item.name,
        "category": item.category,
        "price": pounds(pence),
        "currency": CURRENCY,
        "stock": stock,
        "active": active,
    }


def _profile_fields(shopper: Shopper, consent_email: bool | None, opted_out: bool) -> dict[str, Any]:
    return {
        "customer_id": shopper.customer_id,
        "email": shopper.email,
        "country": shopper.country,
        "grade": shopper.grade,
        "signed_up_at": wire_time(shopper.signed_up_us),
        "consent_email": consent_email,
        "consent_ads": shopper.consent_ads,
        "consent_analytics": shopper.consent_analytics,
        "opted_out": opted_out,
        "erased": False,
    }


def _event_draft(
    at_us: int,
    kind: str,
    visitor_id: str,
    customer_id: str | None,
    session_id: str,
    item: Item | None,
    page: str,
    channel: str,
    order_id: str | None = None,
) -> Draft:
    fields = {
        "event_type": kind,
        "visitor_id": visitor_id,
        "customer_id": customer_id,
        "session_id": session_id,
        "product_id": item.product_id if item else None,
        "order_id": order_id,
        "page": page,
        "channel": channel,
    }
    return Draft(at_us, "event", fields)


def _order_draft(basket: _Basket, at_us: int, status: str) -> Draft:
    return _document(basket, at_us, basket.order_id, status, None, basket.lines, 1)


def _return_draft(basket: _Basket, at_us: int, status: str, lines: tuple[tuple[Item, int], ...]) -> Draft:
    """A document of its own with negative quantities that names the order it takes back."""
    return _document(basket, at_us, f"R{basket.order_id}", status, basket.order_id, lines, -1)


def _document(
    basket: _Basket, at_us: int, number: str, status: str, cancels: str | None, lines: tuple[tuple[Item, int], ...], sign: int
) -> Draft:
    fields = {
        "order_id": number,
        "customer_id": basket.shopper.customer_id if basket.shopper else None,
        "status": status,
        "cancels_order_id": cancels,
        "currency": CURRENCY,
        "channel": basket.channel,
        "country": basket.shopper.country if basket.shopper else "United Kingdom",
        "lines": [
            {
                "line_number": number_of_line,
                "product_id": item.product_id,
                "description": item.name,
                "quantity": sign * quantity,
                "unit_price": pounds(item.pence),
            }
            for number_of_line, (item, quantity) in enumerate(lines, start=1)
        ],
    }
    return Draft(at_us, "order", fields, sum(sign * quantity * item.pence for item, quantity in lines))


def _base36(number: int) -> str:
    text = ""
    while number:
        number, digit = divmod(number, 36)
        text = _BASE36[digit] + text
    return text or "0"
