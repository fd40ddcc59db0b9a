"""The file formats of the public data sets: which columns they have, and what time and key a row gets. Pure.

Belongs here: `RawFormat`, the known ones, and telling them apart by the header. Not here: reading a file (`raw_reader`), or the message
made of a row (`raw_replay`).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from zoneinfo import ZoneInfo

from generator.online_retail import TIMEZONE, local_time

Cell = Callable[[str], str]
"""Text of a row's column, by the first of the column's spellings."""


class BadCellError(ValueError):
    """A column of a row cannot be used: `column` by the first of its spellings."""

    def __init__(self, column: str, text: str) -> None:
        super().__init__(text)
        self.column = column


class FormatName(StrEnum):
    """The known formats; the value is the last part of the topic."""

    ONLINE_RETAIL = "online_retail"
    RETAILROCKET_EVENTS = "retailrocket_events"
    RETAILROCKET_ITEM_PROPERTIES = "retailrocket_item_properties"
    RETAILROCKET_CATEGORY_TREE = "retailrocket_category_tree"
    AVAZU = "avazu"


@dataclass(frozen=True)
class RawColumn:
    """A column by its known spellings; an optional one may be absent."""

    spellings: tuple[str, ...]
    optional: bool = False

    @property
    def name(self) -> str:
        """The spelling the code uses."""
        return self.spellings[0]


@dataclass(frozen=True)
class RawFormat:
    """A file format.

    `event_time` gives a row's time in UTC, None where the format has none. `key` gives the
    Kafka key. `synthetic` names the part of the time that is made up, None where all of it stands in the file.
    """

    name: FormatName
    title: str
    columns: tuple[RawColumn, ...]
    event_time: Callable[[Cell], datetime | None]
    key: Callable[[Cell], str]
    synthetic: str | None = None

    def places(self, header: Sequence[str]) -> dict[str, int]:
        """Position of each column that is there, by the first of its spellings."""
        positions = {title: place for place, title in enumerate(header)}
        return {c.name: positions[s] for c in self.columns for s in c.spellings if s in positions}

    def differences(self, header: Sequence[str]) -> list[str]:
        """What keeps a header from being one of this format; empty when it is one. The order of columns does not matter."""
        known = {s for c in self.columns for s in c.spellings}
        missing = [" or ".join(c.spellings) for c in self.columns if not c.optional and not set(c.spellings) & set(header)]
        unknown = [title or "(no name)" for title in header if title not in known]
        doubled = sorted({c.name for c in self.columns if sum(title in c.spellings for title in header) > 1})
        return [
            *([f"missing: {', '.join(missing)}"] if missing else []),
            *([f"not known: {', '.join(unknown)}"] if unknown else []),
            *([f"there twice: {', '.join(doubled)}"] if doubled else []),
        ]


def _required(cell: Cell, column: str) -> str:
    text = cell(column).strip()
    if not text:
        raise BadCellError(column, "is empty")
    return text


@lru_cache(maxsize=4096)  # many rows in a row have the same time
def _london(text: str) -> datetime | None:
    local = local_time(text)
    return local.replace(tzinfo=ZoneInfo(TIMEZONE)).astimezone(UTC) if local else None


def _retail_time(cell: Cell) -> datetime:
    text = cell("InvoiceDate")
    at = _london(text)
    if at is None:
        raise BadCellError("InvoiceDate", f"{text!r} is no time such as 2010-12-01 08:26:00 or 12/1/2010 8:26")
    return at


def _retail_key(cell: Cell) -> str:
    """The customer's number as the orders' key has it; a guest's row goes by its invoice."""
    return cell("CustomerID").strip().removesuffix(".0") or _required(cell, "InvoiceNo")


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECONDS = re.compile(r"\d{12,13}")


def _rocket_time(cell: Cell) -> datetime:
    text = cell("timestamp")
    if not _MILLISECONDS.fullmatch(text):
        raise BadCellError("timestamp", f"{text!r} is no time in milliseconds since 1970, such as 1433221332117")
    return _EPOCH + timedelta(milliseconds=int(text))


_HOUR = re.compile(r"\d{8}")
UNKNOWN_DEVICE = "a99f214a"
"""The device id that most rows of Avazu share: it stands for an unknown device."""


@lru_cache(maxsize=64)
def _hour(text: str) -> datetime | None:
    if not _HOUR.fullmatch(text):
        return None
    year, month, day, hour = (int(text[i : i + 2]) for i in (0, 2, 4, 6))
    try:
        return datetime(2000 + year, month, day, hour, tzinfo=UTC)
    except ValueError:
        return None


def _avazu_time(cell: Cell) -> datetime:
    """The file's hour, taken as UTC, and a minute that derives from the row's id."""
    text = cell("hour")
    hour = _hour(text)
    if hour is None:
        raise BadCellError("hour", f"{text!r} is no hour as YYMMDDHH, such as 14102100")
    return hour + timedelta(minutes=zlib.crc32(_required(cell, "id").encode()) % 60)


def _avazu_key(cell: Cell) -> str:
    """The device; an unknown one goes by its address and model, else most rows would share one key."""
    device = _required(cell, "device_id")
    return device if device != UNKNOWN_DEVICE else f"{cell('device_ip')}/{cell('device_model')}"


def _plain(names: str) -> tuple[RawColumn, ...]:
    return tuple(RawColumn((name,)) for name in names.split())


ONLINE_RETAIL = RawFormat(
    name=FormatName.ONLINE_RETAIL,
    title="Online Retail",
    columns=(
        RawColumn(("InvoiceNo", "Invoice")),
        *_plain("StockCode Description Quantity InvoiceDate"),
        RawColumn(("UnitPrice", "Price")),
        RawColumn(("CustomerID", "Customer ID")),
        *_plain("Country"),
    ),
    event_time=_retail_time,
    key=_retail_key,
)
RETAILROCKET_EVENTS = RawFormat(
    name=FormatName.RETAILROCKET_EVENTS,
    title="RetailRocket events",
    columns=_plain("timestamp visitorid event itemid transactionid"),
    event_time=_rocket_time,
    key=lambda cell: _required(cell, "visitorid"),
)
RETAILROCKET_ITEM_PROPERTIES = RawFormat(
    name=FormatName.RETAILROCKET_ITEM_PROPERTIES,
    title="RetailRocket item properties",
    columns=_plain("timestamp itemid property value"),
    event_time=_rocket_time,
    key=lambda cell: _required(cell, "itemid"),
)
RETAILROCKET_CATEGORY_TREE = RawFormat(
    name=FormatName.RETAILROCKET_CATEGORY_TREE,
    title="RetailRocket category tree",
    columns=_plain("categoryid parentid"),
    event_time=lambda _cell: None,
    key=lambda cell: _required(cell, "categoryid"),
)
AVAZU = RawFormat(
    name=FormatName.AVAZU,
    title="Avazu click-through",
    columns=(
        RawColumn(("id",)),
        RawColumn(("click",), optional=True),  # the test file is what has to be predicted
        *_plain("hour C1 banner_pos site_id site_domain site_category app_id app_domain app_category device_id device_ip"),
        *_plain("device_model device_type device_conn_type C14 C15 C16 C17 C18 C19 C20 C21"),
    ),
    event_time=_avazu_time,
    key=_avazu_key,
    synthetic="minute",
)

FORMATS: dict[FormatName, RawFormat] = {
    f.name: f for f in (ONLINE_RETAIL, RETAILROCKET_EVENTS, RETAILROCKET_ITEM_PROPERTIES, RETAILROCKET_CATEGORY_TREE, AVAZU)
}
"""The known formats by name."""


class UnknownHeaderError(ValueError):
    """A header is of no known format; the message says which format comes closest and what differs."""


def detect(header: Sequence[str], wanted: RawFormat | None = None) -> RawFormat:
    """The format a header belongs to.

    Args:
        header: titles without blanks around them.
        wanted: the only format to consider; all when None.

    Raises:
        UnknownHeaderError: it belongs to none.
    """
    candidates = [wanted] if wanted else list(FORMATS.values())
    for candidate in candidates:
        if not candidate.differences(header):
            return candidate
    nearest = max(candidates, key=lambda f: len(f.places(header)))
    expected = ",".join(c.name for c in nearest.columns)
    if wanted is None and not nearest.places(header):
        raise UnknownHeaderError(f"is the header of none of the known formats ({', '.join(FORMATS)}); it begins {','.join(header)[:100]!r}")
    raise UnknownHeaderError(f"is no header of {nearest.title}: {'; '.join(nearest.differences(header))}; expected is {expected}")
