"""Reads purchase histories from a CSV file with the header `x,t_x,T`.

Belongs here: the format and what is wrong with a file. Not here: what the numbers mean (`histories`).
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

from crm_assets.warehouse.models.histories import Histories

COLUMNS = ("x", "t_x", "T")


class CsvError(ValueError):
    """A file that is no table of histories; the message names file, line and column."""


def read_histories(path: Path) -> Histories:
    """Histories of a file, a customer per line; columns besides `x`, `t_x` and `T` are left alone.

    Raises:
        CsvError: the file cannot be read, lacks a column, or holds a value that cannot be.
    """
    values: dict[str, list[float]] = {name: [] for name in COLUMNS}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, strict=True)
            header = [name.strip() for name in next(lines, [])]
            missing = [name for name in COLUMNS if name not in header]
            if missing:
                raise CsvError(f"{path}, line 1: no column {', '.join(missing)}; the header must name x, t_x and T, found {header}")
            doubled = [name for name in COLUMNS if header.count(name) > 1]
            if doubled:
                raise CsvError(f"{path}, line 1: column {', '.join(doubled)} stands there more than once")
            places = [header.index(name) for name in COLUMNS]
            for fields in lines:
                place = f"{path}, line {lines.line_num}"
                if len(fields) != len(header):
                    raise CsvError(f"{place}: {len(fields)} fields where the header has {len(header)}")
                x, t_x, age = (_number(fields[at], name, place) for at, name in zip(places, COLUMNS, strict=True))
                _check(x, t_x, age, place)
                for name, value in zip(COLUMNS, (x, t_x, age), strict=True):
                    values[name].append(value)
    except OSError as error:
        raise CsvError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CsvError(f"{path}: byte {error.start} is no UTF-8; save the file as UTF-8") from error
    except csv.Error as error:
        raise CsvError(f"{path}, line {lines.line_num}: {error}") from error
    if not values["x"]:
        raise CsvError(f"{path}: no line below the header; a customer per line is needed")
    return Histories.of(*(values[name] for name in COLUMNS))


def _number(text: str, name: str, place: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise CsvError(f"{place}, column {name}: {text!r} is no number") from None
    if not math.isfinite(value):
        raise CsvError(f"{place}, column {name}: {text!r} is not finite")
    return value


def _check(x: float, t_x: float, age: float, place: str) -> None:
    if x < 0 or x != int(x):
        raise CsvError(f"{place}, column x: {x:g} is no whole number from 0 on")
    if t_x < 0:
        raise CsvError(f"{place}, column t_x: {t_x:g} is below 0")
    if age < t_x:
        raise CsvError(f"{place}, column T: {age:g} is below t_x = {t_x:g}; T is the time from the first purchase to the as-of date")
    if x == 0 and t_x != 0:
        raise CsvError(f"{place}, column t_x: {t_x:g} where x is 0; without a repeat purchase the last is the first")
