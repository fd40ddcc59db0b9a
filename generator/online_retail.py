"""The UCI Online Retail file as orders: one message per invoice, nothing odd dropped.

`read_file` checks the whole file and builds every invoice before anything is sent; `messages` gives the records. The same
content gives the same bytes, so a second replay consists of exact duplicates. Known spellings of the columns: those of the
first edition (InvoiceNo, UnitPrice, CustomerID) and of the second (Invoice, Price, Customer ID).
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import orjson

from generator.encode import wire_time
from generator.environment import EnvironmentFacts
from generator.errors import BadInputError, Problem
from generator.ids import derived_uuid, epoch_microseconds
from generator.records import Outgoing

SOURCE = "online-retail"
CURRENCY = "GBP"
CHANNEL = "web"
TIMEZONE = "Europe/London"

_COLUMNS: tuple[tuple[str, ...], ...] = (
    ("InvoiceNo", "Invoice"),
    ("StockCode",),
    ("Description",),
    ("Quantity",),
    ("InvoiceDate",),
    ("UnitPrice", "Price"),
    ("CustomerID", "Customer ID"),
    ("Country",),
)
_ISO_TIME = re.compile(r"(\d{4})-(\d{2})-(\d{2})[ T](\d{2}):(\d{2})(?::(\d{2}))?")
_US_TIME = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{4}) (\d{1,2}):(\d{2})(?::(\d{2}))?")
_PRICE = re.compile(r"-?\d{1,10}(?:\.\d{1,4})?")
_QUANTITY = re.compile(r"[+-]?\d{1,9}")
_CUSTOMER = re.compile(r"(\d+)(?:\.0+)?")
_MOST_PROBLEMS = 1_000
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the file. `at` is UTC; `row` counts data rows from 1."""

    product_id: str
    description: str | None
    quantity: int
    unit_price: str
    at: datetime
    row: int


@dataclass(slots=True)
class Invoice:
    """All rows with one invoice number, in the order of the file."""

    number: str
    customer_id: str | None
    country: str | None
    lines: list[Line] = field(default_factory=list)

    @property
    def event_time(self) -> datetime:
        """Time of the earliest line."""
        return min(line.at for line in self.lines)

    @property
    def status(self) -> str:
        """Cancelled for numbers that begin with C, adjustment for A, else completed."""
        return {"C": "cancelled", "A": "adjustment"}.get(self.number[:1].upper(), "completed")

    @property
    def amount(self) -> Decimal:
        """Exact sum of quantity times unit price."""
        return sum((line.quantity * Decimal(line.unit_price) for line in self.lines), Decimal(0))


@dataclass(frozen=True)
class RetailFile:
    """A checked file: its invoices in the order of event time, and the SHA-256 of its uncompressed content."""

    path: Path
    sha256: str
    rows: int
    invoices: tuple[Invoice, ...]
    last_local: datetime

    @property
    def run_id(self) -> str:
        """Run id of every replay of this content."""
        return f"online-retail-{self.sha256[:16]}"

    @property
    def facts(self) -> EnvironmentFacts:
        """Time zone of the file, and the day after its last date as the date the marts look at."""
        return EnvironmentFacts(TIMEZONE, self.last_local.date() + timedelta(days=1))


def read_file(path: Path, *, encoding: str = "utf-8") -> RetailFile:
    """Read and check a file, gzip-compressed or plain.

    Args:
        path: a name that ends in `.gz` must be gzip.
        encoding: of the text, e.g. `latin-1` for older copies.

    Raises:
        BadInputError: the file cannot be read, is not gzip, is empty, lacks a column, or a record is bad.
    """
    content = _content(path)
    name = path.name
    try:
        text = content.decode("utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        message = f"is not {encoding} text; for a file in another encoding pass --encoding, e.g. latin-1"
        raise BadInputError(name, [Problem(line, None, message)]) from error
    except LookupError as error:
        raise BadInputError(name, [Problem(None, None, f"there is no encoding {encoding!r}; try utf-8 or latin-1")]) from error
    return _parse(path, text, hashlib.sha256(content).hexdigest())


def messages(file: RetailFile) -> Iterator[Outgoing]:
    """One order per invoice, in the order of event time."""
    for invoice in file.invoices:
        yield _message(file, invoice)


def _message(file: RetailFile, invoice: Invoice) -> Outgoing:
    event_time = invoice.event_time
    event_us = epoch_microseconds(event_time)
    event_id = derived_uuid(event_time, file.sha256, invoice.number)
    amount = invoice.amount
    message = {
        "event_id": event_id,
        "entity": "order",
        "entity_key": invoice.number,
        "sequence": 1,
        # The version whose fields are written here, not the latest: a file replayed again must give the same bytes.
        "schema_version": 1,
        "event_time": wire_time(event_us),
        "source": SOURCE,
        "run_id": file.run_id,
        "order_id": invoice.number,
        "customer_id": invoice.customer_id,
        "status": invoice.status,
        "cancels_order_id": None,
        "currency": CURRENCY,
        "channel": CHANNEL,
        "country": invoice.country,
        "amount": f"{amount:f}",
        "lines": [
            {
                "line_number": number,
                "product_id": line.product_id,
                "description": line.description,
                "quantity": line.quantity,
                "unit_price": line.unit_price,
                "line_time": wire_time(epoch_microseconds(line.at)) if line.at != event_time else None,
                "source_line": line.row,
            }
            for number, line in enumerate(invoice.lines, start=1)
        ],
    }
    return Outgoing(
        plural="orders",
        entity="order",
        key=(invoice.customer_id or invoice.number).encode(),
        value=orjson.dumps(message),
        event_id=event_id,
        entity_key=invoice.number,
        sequence=1,
        event_us=event_us,
        amount=amount,
    )


def _content(path: Path) -> bytes:
    name = path.name
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadInputError(str(path), [Problem(None, None, f"cannot be read: {error.strerror}")]) from error
    if not raw:
        raise BadInputError(name, [Problem(None, None, "is empty")])
    if not raw.startswith(_GZIP_MAGIC):
        if path.suffix == ".gz":
            raise BadInputError(
                name, [Problem(None, None, "is not gzip, although its name says so; rename it to .csv if it is plain text")]
            )
        return raw
    try:
        content = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise BadInputError(name, [Problem(None, None, f"is a damaged or cut off gzip file ({error}); fetch it again")]) from error
    if not content:
        raise BadInputError(name, [Problem(None, None, "is empty")])
    return content


def _parse(path: Path, text: str, sha256: str) -> RetailFile:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    problems: list[Problem] = []
    invoices: dict[str, Invoice] = {}
    times: dict[str, datetime] = {}
    london = ZoneInfo(TIMEZONE)
    last_local = datetime.min  # noqa: DTZ901 -- compared with the file's own naive times only
    rows = 0
    try:
        header = next(reader)
        places = _places(path.name, header)
        width = len(header)
        for cells in reader:
            if not cells:
                continue
            rows += 1
            line = reader.line_num
            if len(cells) != width:
                problems.append(Problem(line, None, f"has {len(cells)} columns, the header has {width}"))
                continue
            number, product, description, quantity, when, price, customer, country = (cells[p] for p in places)
            found = len(problems)
            if not number.strip():
                problems.append(Problem(line, header[places[0]], "is empty"))
            if not product:
                problems.append(Problem(line, header[places[1]], "is empty"))
            if not _QUANTITY.fullmatch(quantity):
                problems.append(Problem(line, header[places[3]], f"{quantity!r} is no whole number"))
            local = times.get(when)
            if local is None:
                local = local_time(when)
                if local is None:
                    problems.append(Problem(line, header[places[4]], f"{when!r} is no time such as 2010-12-01 08:26:00"))
                else:
                    times[when] = local
                    last_local = max(last_local, local)
            if not _PRICE.fullmatch(price):
                problems.append(Problem(line, header[places[5]], f"{price!r} is no price with at most 10 digits and 4 decimals"))
            known = _CUSTOMER.fullmatch(customer.strip())
            if customer.strip() and not known:
                problems.append(Problem(line, header[places[6]], f"{customer!r} is no customer number"))
            if len(problems) > found or local is None:
                if len(problems) >= _MOST_PROBLEMS:
                    break
                continue
            customer_id = known[1] if known else None
            invoice = invoices.get(number)
            if invoice is None:
                invoice = invoices[number] = Invoice(number, customer_id, country or None)
            problems.extend(_conflicts(invoice, customer_id, country or None, line, header, places))
            invoice.lines.append(
                Line(product, description or None, int(quantity), price, local.replace(tzinfo=london).astimezone(UTC), rows)
            )
    except StopIteration:
        raise BadInputError(path.name, [Problem(None, None, "is empty")]) from None
    except csv.Error as error:
        problems.append(Problem(reader.line_num, None, f"is no CSV: {error}"))
    if problems:
        raise BadInputError(path.name, problems)
    if not rows:
        raise BadInputError(path.name, [Problem(None, None, "has a header but no records")])
    ordered = sorted(invoices.values(), key=lambda i: (i.event_time, i.lines[0].row))
    return RetailFile(path, sha256, rows, tuple(ordered), last_local)


def _places(name: str, header: list[str]) -> list[int]:
    """Position of each wanted column."""
    titles = [title.strip() for title in header]
    places = []
    missing = []
    for spellings in _COLUMNS:
        found = [titles.index(s) for s in spellings if s in titles]
        if found:
            places.append(found[0])
        else:
            missing.append(Problem(1, " or ".join(spellings), "column is missing"))
    if missing:
        raise BadInputError(name, [*missing, Problem(1, None, f"the columns found are: {', '.join(titles)}")])
    return places


def _conflicts(
    invoice: Invoice, customer_id: str | None, country: str | None, line: int, header: list[str], places: list[int]
) -> Iterator[Problem]:
    """An invoice has one customer and one country; the first that is given stands for lines that give none."""
    if customer_id is not None:
        if invoice.customer_id is None:
            invoice.customer_id = customer_id
        elif invoice.customer_id != customer_id:
            yield Problem(
                line, header[places[6]], f"invoice {invoice.number} has customer {invoice.customer_id} above and {customer_id} here"
            )
    if country is not None:
        if invoice.country is None:
            invoice.country = country
        elif invoice.country != country:
            yield Problem(line, header[places[7]], f"invoice {invoice.number} has country {invoice.country} above and {country} here")


def local_time(text: str) -> datetime | None:
    """Naive local time of the file; None where the text is no time."""
    try:
        if found := _ISO_TIME.fullmatch(text):
            year, month, day, hour, minute, second = (int(part or 0) for part in found.groups())
        elif found := _US_TIME.fullmatch(text):
            month, day, year, hour, minute, second = (int(part or 0) for part in found.groups())
        else:
            return None
        return datetime(year, month, day, hour, minute, second)  # noqa: DTZ001 -- naive as in the file; the caller gives it its zone
    except ValueError:
        return None
