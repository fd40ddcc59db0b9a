"""Attempts of dead letters beside the replay ledger: which dead letters are open, and whether both tell the same.

Belongs here: keeping both by topic partition, a number for each row, and comparing them. Not here: reading the tables (`audit_reading`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crm_assets.monitoring.audit_lists import Finding
from crm_assets.monitoring.coordinates import Coordinate, CoordinateBook, Offsets, Seen, States

Partition = tuple[str, int]
Numbers = npt.NDArray[np.int64]
Names = npt.NDArray[np.object_]

SILVER, DUPLICATE, DEAD_LETTER = "silver", "duplicate", "dead_letter"
"""Outcomes, as the replay ledger spells them."""

_ATTEMPT_BITS = 16


@dataclass
class _Rows:
    """Rows of one partition: offset and attempt in one number, and a word beside each."""

    numbers: Numbers
    words: Names


class ReplayBook:
    """Dead letters and replay rows of an audit."""

    def __init__(self) -> None:
        self._letters: defaultdict[Partition, list[tuple[Numbers, Names]]] = defaultdict(list)
        self._replays: defaultdict[Partition, list[tuple[Numbers, Names]]] = defaultdict(list)
        self.replayed = 0

    def add_letters(self, topic: str, partition: int, offsets: Offsets, attempts: Numbers, reasons: Names) -> None:
        """Take in dead letters of a partition, each with its reason."""
        self._letters[topic, partition].append(((offsets << _ATTEMPT_BITS) + attempts, reasons))

    def add_replays(self, topic: str, partition: int, offsets: Offsets, attempts: Numbers, outcomes: Names) -> None:
        """Take in rows of the replay ledger, each with its outcome."""
        self._replays[topic, partition].append(((offsets << _ATTEMPT_BITS) + attempts, outcomes))
        self.replayed += len(offsets)

    def open_letters(self) -> Iterator[tuple[str, int, Offsets, Names]]:
        """Offsets and reasons of the dead letters that no replay has tried, each record in its latest attempt, by partition."""
        for key in sorted(self._letters):
            letters, replays = _sorted(self._letters[key]), _sorted(self._replays.get(key, []))
            offsets = letters.numbers >> _ATTEMPT_BITS
            highest = np.maximum.reduceat(letters.numbers, np.flatnonzero(np.diff(offsets, prepend=-1)))
            is_open = np.isin(letters.numbers, highest) & ~np.isin(letters.numbers, replays.numbers)
            if is_open.any():
                yield *key, offsets[is_open], letters.words[is_open]

    def first_reasons(self, topic: str, partition: int, offsets: Offsets) -> list[str]:
        """Why records of a partition were refused when they were first judged."""
        if not len(offsets):
            return []
        letters = _sorted(self._letters[topic, partition])
        found: list[str] = letters.words[np.isin(letters.numbers, (offsets << _ATTEMPT_BITS) + 1)].tolist()
        return found

    def findings(self, book: CoordinateBook) -> Iterator[Finding]:
        """What the ledger leaves out or says wrongly; records too young to be judged are left out.

        Args:
            book: where each coordinate was seen.
        """
        for key in sorted({*self._letters, *self._replays}):
            letters, replays = _sorted(self._letters.get(key, [])), _sorted(self._replays.get(key, []))
            seen = _states_of(book, key)
            failed = replays.words == DEAD_LETTER
            again = letters.numbers[(letters.numbers & (2**_ATTEMPT_BITS - 1)) > 1]
            wrong: list[tuple[Numbers, str]] = [
                (_twice(replays.numbers), "attempt {} stands twice in the replay ledger"),
                (_twice(letters.numbers), "attempt {} stands twice among the dead letters"),
                (_absent(replays.numbers, letters.numbers), "attempt {} was replayed, but is not among the dead letters"),
                (
                    _absent(replays.numbers[failed] + 1, letters.numbers) - 1,
                    "attempt {} failed again by the replay ledger, but the next attempt is not among the dead letters",
                ),
                (_absent(again - 1, replays.numbers[failed]), "attempt {} has a next one, but the replay ledger does not say so"),
                *(
                    (_elsewhere(replays, outcome, seen, place), f"attempt {{}} went to {name} by the replay ledger, but is not there")
                    for outcome, place, name in ((SILVER, Seen.SILVER, "silver"), (DUPLICATE, Seen.DUPLICATES, "the duplicates"))
                ),
            ]
            for numbers, text in wrong:
                settled = numbers[(seen(numbers >> _ATTEMPT_BITS) & np.uint16(int(Seen.IN_FLIGHT))) == 0]
                for number in settled.tolist():
                    offset, attempt = number >> _ATTEMPT_BITS, number % 2**_ATTEMPT_BITS
                    yield Finding("", str(Coordinate(*key, offset)), text.format(attempt))


def _states_of(book: CoordinateBook, key: Partition) -> Callable[[Offsets], States]:
    return lambda offsets: book.states(*key, offsets)


def _sorted(parts: list[tuple[Numbers, Names]]) -> _Rows:
    if not parts:
        return _Rows(np.empty(0, np.int64), np.empty(0, object))
    numbers, words = np.concatenate([n for n, _ in parts]), np.concatenate([w for _, w in parts])
    order = np.argsort(numbers, kind="stable")
    return _Rows(numbers[order], words[order])


def _twice(numbers: Numbers) -> Numbers:
    """Numbers that follow an equal one; the numbers are sorted."""
    return np.asarray(numbers[1:][numbers[1:] == numbers[:-1]])


def _absent(numbers: Numbers, among: Numbers) -> Numbers:
    return numbers[~np.isin(numbers, among)]


def _elsewhere(replays: _Rows, outcome: str, seen: Callable[[Offsets], States], place: Seen) -> Numbers:
    """Replay rows with an outcome whose record is not in the place that belongs to it."""
    numbers = replays.numbers[replays.words == outcome]
    return np.asarray(numbers[(seen(numbers >> _ATTEMPT_BITS) & np.uint16(int(place))) == 0])
