"""The sealed truth of a run: what nobody can see in the stream, for judging what is estimated from it.

A folder `<home>/<env>/truth/<run_id>/`, readable by its owner only:

- `truth.json`: parameters, seed, window, `bgnbd` (whether the purchase process is BG/NBD unaltered), and the SHA-256 of the tables;
- `customers.parquet`: λ per week, p, ν, birth and drop-out of each customer;
- `purchases.parquet`: every purchase to the horizon, its operational time and total, the order it became, and its fate in the stream;
- `season.parquet`: s and Λ by hour, with a last row for the end.

The seals are the hashes: a truth that was changed after the run is refused. Nothing of it is sent anywhere.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from generator.population_model.order_life import State
from generator.population_model.season import HOUR_US
from generator.population_model.shop import PopulationShop

if TYPE_CHECKING:
    import pyarrow as pa

TABLES = ("customers", "purchases", "season")
_PRIVATE_FOLDER = 0o700


class TruthError(RuntimeError):
    """A truth cannot be read, or is not the one that was sealed; the message names the file."""


@dataclass(frozen=True)
class Truth:
    """A truth as it was sealed. `facts` is what `truth.json` says; times in the tables are UTC with microseconds."""

    facts: dict[str, Any]
    customers: pa.Table
    purchases: pa.Table
    season: pa.Table

    @property
    def bgnbd(self) -> bool:
        """Whether the purchase times are those of BG/NBD, so that its fit may be judged by this truth."""
        return bool(self.facts["bgnbd"])


def truth_dir(environment_dir: Path, run_id: str) -> Path:
    """Folder of a run's truth."""
    return environment_dir / "truth" / run_id


def write_truth(shop: PopulationShop, environment_dir: Path, *, bgnbd: bool | None = None) -> Path:
    """Seal the truth of a population; the same options write the same tables.

    Args:
        shop: whose truth it is.
        environment_dir: folder of the data set.
        bgnbd: whether what is sent follows the purchase process unaltered; by default whether the model is BG/NBD. Runs that are sped up
            by a hot key, by live traffic or by defects say False.

    Returns:
        The folder.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = truth_dir(environment_dir, shop.run_id)
    folder.mkdir(parents=True, exist_ok=True)
    folder.parent.chmod(_PRIVATE_FOLDER)
    folder.chmod(_PRIVATE_FOLDER)
    seals = {}
    for name, table in zip(TABLES, (_customers(shop), _purchases(shop), _season(shop)), strict=True):
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        content = sink.getvalue().to_pybytes()
        seals[name] = hashlib.sha256(content).hexdigest()
        _write_private(folder / f"{name}.parquet", content)
    facts = {
        "run_id": shop.run_id,
        "bgnbd": not shop.options.purchase_model.dropout_at_first if bgnbd is None else bgnbd,
        "first_day": shop.options.start,
        "last_day": shop.options.end,
        "truth_days_after_the_last_day": shop.options.truth_days,
        "customers": shop.customers.count,
        "purchases_streamed": shop.orders,
        "purchases": shop.purchases.count,
        "options": asdict(shop.options),
        "sha256": seals,
    }
    _write_private(folder / "truth.json", orjson.dumps(facts, option=orjson.OPT_INDENT_2) + b"\n")
    return folder


def read_truth(folder: Path) -> Truth:
    """The truth of a run, if its seals are whole.

    Raises:
        TruthError: a file is absent, or is not the one that was sealed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        facts = orjson.loads((folder / "truth.json").read_bytes())
        tables = {}
        for name in TABLES:
            content = (folder / f"{name}.parquet").read_bytes()
            if hashlib.sha256(content).hexdigest() != facts["sha256"][name]:
                raise TruthError(f"{folder / name}.parquet is not the file that was sealed; generate the run's truth again")
            tables[name] = pq.read_table(pa.BufferReader(content))
    except OSError as error:
        raise TruthError(f"cannot read the truth in {folder}: {error.strerror}") from error
    except (orjson.JSONDecodeError, KeyError) as error:
        raise TruthError(f"{folder / 'truth.json'} is no truth file: {error}") from error
    return Truth(facts, **tables)


def _customers(shop: PopulationShop) -> pa.Table:
    import pyarrow as pa

    customers = shop.customers
    left = customers.dropout_us
    return pa.table(
        {
            "customer_id": pa.array(shop.customer_ids),
            "rate_per_week": customers.rate_per_week,
            "dropout_probability": customers.dropout_probability,
            "spend_rate": shop.nu,
            "born_at": _times(customers.birth_us),
            "dropped_out_at": _times(left, left < 0),
        }
    )


def _purchases(shop: PopulationShop) -> pa.Table:
    import pyarrow as pa

    bought = shop.purchases
    count = bought.count
    fate = np.full(count, "", dtype="U13")
    messages = shop.order_messages
    for state in (State.CANCELLED, State.RETURNED, State.PART_REFUNDED):
        # What happens to an order after the last day is no more in the stream than the purchases after it.
        which = (messages.state == state) & (messages.at_us < shop.end_us)
        fate[messages.order[which]] = state.name.lower()
    return pa.table(
        {
            "customer_id": pa.array(shop.customer_ids).take(pa.array(bought.customer)),
            "ordinal": bought.ordinal,
            "bought_at": _times(bought.at_us),
            "operational_weeks": bought.weeks,
            "total_cents": shop.totals_cents,
            "order_id": pa.array([*shop.order_ids, *[None] * (count - shop.orders)], pa.string()),
            "taken_back": pa.array(fate, mask=fate == ""),
        }
    )


def _season(shop: PopulationShop) -> pa.Table:
    import pyarrow as pa

    season = shop.season
    hours = season.start_us + np.arange(season.passed_weeks.size) * HOUR_US
    level = np.append(season.level, 0.0)
    return pa.table(
        {
            "hour": _times(hours),
            "level": pa.array(level, mask=np.arange(level.size) == season.level.size),
            "operational_weeks": season.passed_weeks,
        }
    )


def _times(at_us: np.ndarray[Any, np.dtype[np.int64]], absent: np.ndarray[Any, np.dtype[np.bool_]] | None = None) -> pa.Array:
    import pyarrow as pa

    return pa.array(at_us, mask=absent).cast(pa.timestamp("us", tz="UTC"))


def _write_private(path: Path, content: bytes) -> None:
    """Write a file that nobody but its owner ever could read, whole or not at all, whoever else writes it at the same time."""
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(draft).replace(path)
    finally:
        Path(draft).unlink(missing_ok=True)
