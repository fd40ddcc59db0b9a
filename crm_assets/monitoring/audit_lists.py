"""The complete lists of what an audit found broken: all of it in a file, the first ones in memory.

Belongs here: keeping and writing. Not here: what is broken (`audit_checks`).
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

_KEPT = 10_000


@dataclass(frozen=True)
class Finding:
    """One broken thing: a record by event id and coordinate (each empty where it is not known), or something told in `detail`."""

    event_id: str
    coordinate: str
    detail: str = ""

    def __str__(self) -> str:
        """What is known of it."""
        return " ".join(part for part in (self.event_id, self.coordinate, self.detail) if part)


class FindingLists:
    """Findings by the name of their list.

    Args:
        path: CSV file with the columns `list`, `event_id`, `coordinate`, `detail`; made with the first finding. None keeps the first
            10,000 of each list in memory and nothing else.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: TextIO | None = None
        self._kept: defaultdict[str, list[Finding]] = defaultdict(list)

    @property
    def written(self) -> Path | None:
        """The file, where there is one."""
        return self._path if self._file is not None else None

    def add(self, name: str, findings: Iterable[Finding]) -> None:
        """Add findings to a list."""
        kept = self._kept[name]
        for finding in findings:
            if len(kept) < _KEPT:
                kept.append(finding)
            if self._path is not None:
                if self._file is None:
                    self._path.parent.mkdir(parents=True, exist_ok=True)
                    self._file = self._path.open("w", newline="")
                    csv.writer(self._file).writerow(("list", "event_id", "coordinate", "detail"))
                csv.writer(self._file).writerow((name, finding.event_id, finding.coordinate, finding.detail))

    def of(self, name: str) -> tuple[Finding, ...]:
        """The first findings of a list."""
        return tuple(self._kept.get(name, ()))

    def __enter__(self) -> Self:
        if self._path is not None:
            self._path.unlink(missing_ok=True)  # an earlier audit's list would be taken for this one's
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
