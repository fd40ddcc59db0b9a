"""The only place where a field of an entity is named, typed and described.

Belongs here: the envelope of every message and the four entities. Not here: how a store spells a type (`derive_*`), what
a business makes of a field (the dbt project), or which records a producer sends.

A field that comes later is declared with `added_in` and the next schema version, and is optional for good; `docs/changing-a-contract.md`
says what else may change.

Money travels as decimal strings in JSON: unit prices fit `decimal(14,4)`, amounts `decimal(18,4)`. Times travel as
ISO 8601 in UTC with up to six fractional digits, e.g. `2011-12-09T12:50:00.000000Z`.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

_SINCE = "since_schema_version"


def added_in(version: int, description: str) -> Any:  # noqa: ANN401 -- stands where pydantic's `Field`, which is untyped too, would
    """A field that messages have since a schema version; in those that follow an earlier one it is absent.

    Args:
        version: the schema version that brought it, one above `SCHEMA_VERSION` as it was released last.
        description: as in `Field`.
    """
    return Field(default=None, description=description, json_schema_extra={_SINCE: version})


def since(field: FieldInfo) -> int:
    """The schema version that brought a field; 1 unless it was declared with `added_in`."""
    extra = field.json_schema_extra
    found = extra.get(_SINCE, 1) if isinstance(extra, dict) else 1
    return found if isinstance(found, int) else 1


def _storable(text: str) -> str:
    """PostgreSQL cannot store NUL in a text, so no message may hold it."""
    if "\0" in text:
        raise ValueError("holds the NUL character (\\u0000), which no text may; leave it out")
    return text


Text = Annotated[str, AfterValidator(_storable), Field(json_schema_extra={"pattern": r"^[^\u0000]*$"})]
Identifier = Annotated[Text, Field(min_length=1, max_length=200)]
EventId = Annotated[str, Field(min_length=36, max_length=36, pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
UnitPrice = Annotated[Decimal, Field(max_digits=14, decimal_places=4, allow_inf_nan=False)]
Amount = Annotated[Decimal, Field(max_digits=18, decimal_places=4, allow_inf_nan=False)]
BigInt = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Natural = Annotated[int, Field(ge=0, le=2**63 - 1)]
Int32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
Timestamp = AwareDatetime


class Message(BaseModel):
    """Base of all contract models: unknown fields are refused, instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Envelope(Message):
    """The fields every message carries, whatever its entity."""

    event_id: EventId = Field(
        description="Identity of the message, time-ordered (UUIDv7, or an equivalent that begins with the event time)."
    )
    entity: str = Field(description="Which contract the message follows.")
    entity_key: Identifier = Field(description="Key of the thing the message speaks of, e.g. the order number.")
    sequence: Natural = Field(description="Rising number per entity key; the highest is the current state.")
    schema_version: Annotated[int, Field(ge=1, le=2**31 - 1)] = Field(description="Version of the contract the message follows.")
    event_time: Timestamp = Field(description="When it happened, UTC with microseconds.")
    source: Identifier = Field(description="System that produced the message.")
    run_id: Identifier = Field(description="Run of the producer; tells one test or replay from another.")

    @model_validator(mode="after")
    def _holds_no_later_field(self) -> Envelope:
        for name, version in _later_fields(self, self.schema_version) if self.schema_version < SCHEMA_VERSION else ():
            msg = f"{name} exists since schema version {version}, this message follows {self.schema_version}; say {version} or leave it out"
            raise ValueError(msg)
        return self


def _later_fields(message: Message, version: int) -> Iterator[tuple[str, int]]:
    """Fields that are set although the version does not know them, and since when each exists."""
    for name, field in type(message).model_fields.items():
        value = getattr(message, name)
        if value is not None and since(field) > version:
            yield name, since(field)
        for item in value if isinstance(value, list) else ():
            yield from ((f"{name}.{inner}", first) for inner, first in _later_fields(item, version))


class Event(Envelope):
    """Something a visitor did in the shop."""

    entity: Literal["event"] = Field(description="Always `event`.")
    event_type: Literal["view", "click", "search", "cart", "checkout", "payment", "payment_failed", "purchase", "login"] = Field(
        description="What the visitor did."
    )
    visitor_id: Identifier = Field(description="Browser or device; known even when the customer is not.")
    customer_id: Identifier | None = Field(default=None, description="Customer, where the visitor is logged in.")
    session_id: Identifier | None = Field(default=None, description="The shop's own session number, where it keeps one.")
    product_id: Identifier | None = Field(default=None, description="Product the event is about.")
    order_id: Identifier | None = Field(default=None, description="Order the event led to.")
    page: Annotated[Text, Field(max_length=2000)] | None = Field(default=None, description="Path of the page.")
    channel: Identifier | None = Field(default=None, description="Where the visit came from, e.g. web, app, mail.")


class OrderLine(Message):
    """One line of an order. Quantity may be negative, price zero or negative: nothing odd is dropped."""

    line_number: Annotated[int, Field(ge=1, le=2**31 - 1)] = Field(description="Position in the order, from 1.")
    product_id: Identifier = Field(description="Product sold, as the shop wrote it.")
    description: Annotated[Text, Field(max_length=2000)] | None = Field(default=None, description="Product text on the invoice.")
    quantity: Int32 = Field(description="Pieces; negative on cancellations and refunds.")
    unit_price: UnitPrice = Field(description="Price of one piece in the order's currency.")
    line_time: Timestamp | None = Field(default=None, description="When the line was booked, where it differs from the order.")
    source_line: Natural | None = Field(default=None, description="Line of the file the order was replayed from.")


class Order(Envelope):
    """An order with all its lines, or the document that cancels, refunds or adjusts one."""

    entity: Literal["order"] = Field(description="Always `order`.")
    order_id: Identifier = Field(description="Number of the order or document.")
    customer_id: Identifier | None = Field(default=None, description="Customer; absent for guests.")
    status: Literal["placed", "paid", "shipped", "completed", "cancelled", "refunded", "adjustment"] = Field(
        description="placed, paid, shipped and completed are sales; cancelled and refunded take back; adjustment is bookkeeping."
    )
    cancels_order_id: Identifier | None = Field(default=None, description="Order that is cancelled or refunded, where known.")
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = Field(description="ISO 4217 code.")
    channel: Identifier = Field(description="Where the order came from, e.g. web, app, phone.")
    country: Identifier | None = Field(default=None, description="Country of the customer on this order.")
    amount: Amount = Field(description="Sum of quantity × unit price over the lines; checked on arrival.")
    lines: Annotated[list[OrderLine], Field(max_length=20000)] = Field(description="All lines of the order.")

    @model_validator(mode="after")
    def _amount_is_sum_of_lines(self) -> Order:
        total = sum((line.quantity * line.unit_price for line in self.lines), Decimal(0))
        if total != self.amount:
            msg = f"amount {self.amount} is not the sum of the lines, {total}"
            raise ValueError(msg)
        return self


class Product(Envelope):
    """A product as the shop sells it now."""

    entity: Literal["product"] = Field(description="Always `product`.")
    product_id: Identifier = Field(description="The shop's product number.")
    name: Annotated[Text, Field(max_length=2000)] = Field(description="Name shown to customers.")
    category: Identifier | None = Field(default=None, description="Category the shop files it under.")
    price: UnitPrice = Field(description="List price of one piece.")
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = Field(description="ISO 4217 code.")
    stock: Int32 | None = Field(default=None, description="Pieces on hand; null where the shop does not keep stock.")
    active: bool = Field(description="Whether it is for sale.")


class Profile(Envelope):
    """A customer's profile and what the customer allows."""

    entity: Literal["profile"] = Field(description="Always `profile`.")
    customer_id: Identifier = Field(description="The shop's customer number.")
    email: Annotated[Text, Field(max_length=320)] | None = Field(default=None, description="E-mail address.")
    country: Identifier | None = Field(default=None, description="Country of residence.")
    grade: Literal["bronze", "silver", "gold", "platinum"] | None = Field(default=None, description="Loyalty grade.")
    signed_up_at: Timestamp | None = Field(default=None, description="When the account was opened.")
    consent_email: bool | None = Field(default=None, description="Agreed to marketing mail; null is unknown.")
    consent_ads: bool | None = Field(default=None, description="Agreed to be matched on ad platforms; null is unknown.")
    consent_analytics: bool | None = Field(default=None, description="Agreed to profiling; null is unknown.")
    opted_out: bool = Field(description="Wants no marketing at all.")
    erased: bool = Field(description="Asked to be forgotten.")


ENTITIES: dict[str, type[Envelope]] = {"event": Event, "order": Order, "product": Product, "profile": Profile}

_MODELS: tuple[type[Message], ...] = (*ENTITIES.values(), OrderLine)

SCHEMA_VERSION = max(since(field) for model in _MODELS for field in model.model_fields.values())
"""Version the contracts have together: that of the field that came last. Messages of it and of every earlier version are accepted."""

KAFKA_KEY_FIELDS: dict[str, tuple[str, ...]] = {
    # First field that is set becomes the Kafka key; the later ones are the stated stand-ins for an unknown customer.
    "event": ("customer_id", "visitor_id"),
    "order": ("customer_id", "order_id"),
    "product": ("product_id",),
    "profile": ("customer_id",),
}

ENTITY_KEY_FIELDS: dict[str, tuple[str, ...]] = {
    # `entity_key` repeats the first of these that is set; `sequence` rises per entity key.
    "event": ("customer_id", "visitor_id"),
    "order": ("order_id",),
    "product": ("product_id",),
    "profile": ("customer_id",),
}


def kafka_key(message: Envelope) -> bytes:
    """Kafka key of a message: the customer (products: the product), or the stand-in where the customer is unknown."""
    for name in KAFKA_KEY_FIELDS[message.entity]:
        value: str | None = getattr(message, name)
        if value is not None:
            return value.encode()
    msg = f"{message.entity} {message.event_id} has none of {KAFKA_KEY_FIELDS[message.entity]}"
    raise ValueError(msg)


def utc(value: datetime) -> str:
    """Write a time as the contracts spell it: UTC, six fractional digits, `Z`."""
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
