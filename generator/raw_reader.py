"""Reads the rows of a CSV file one after the other, plain or gzip, and says at which line it is wrong.

Belongs here: bytes to lines to rows, in bounded memory, and what a cut off or damaged file looks like. Not here: what the columns mean
(`raw_formats`). A file is read once from front to end; the rows before a fault are good.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import zlib
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

_GZIP_MAGIC = b"\x1f\x8b"
_ZIP_MAGIC = b"PK\x03\x04"
_LONGEST_LINE = 1024 * 1024
_FETCH_AGAIN = "fetch the file again"
_CORRECT = "correct the line, or fetch the file again"


class RawFileError(ValueError):
    """A file cannot be read (further). The message is `file:line: column: what is wrong; what to do`.

    `line` counts from 1, the header included; None speaks of the file as a whole.
    """

    def __init__(self, file: str, line: int | None, text: str, remedy: str, column: str | None = None) -> None:
        self.file = file
        self.line = line
        place = f"{file}:{line}" if line else file
        super().__init__(": ".join([place, *([column] if column else []), f"{text}; {remedy}"]))


class RawRow(NamedTuple):
    """One row. `number` counts data rows from 1, `line` is the line of the file at which it begins."""

    number: int
    line: int
    cells: list[str]


class RawTable:
    """A CSV file being read: `header`, then `rows()`, then `close()`.

    Args:
        path: a name that ends in `.gz` must be gzip.
        encoding: of the text, e.g. `latin-1`.

    Raises:
        RawFileError: the file cannot be opened, or its first line cannot be read.
    """

    def __init__(self, path: Path, encoding: str = "utf-8") -> None:
        self.name = path.name
        self._encoding = encoding
        try:
            codecs.lookup(encoding)
        except LookupError as error:
            raise RawFileError(self.name, None, f"there is no encoding {encoding!r}", "try utf-8 or latin-1") from error
        try:
            self._file = path.open("rb")
            self.size = path.stat().st_size
        except OSError as error:
            raise RawFileError(str(path), None, f"cannot be read: {error.strerror}", "check the path") from error
        try:
            self._lines_read = 0
            self._line_ended = True
            self._stream = self._decompressed(path)
            self._reader = csv.reader(self._lines(), strict=True)
            self.header = [title.strip() for title in self._first_row()]
        except BaseException:
            self._file.close()
            raise

    @property
    def position(self) -> int:
        """Bytes of the file on disk read so far, of `size`."""
        return self._file.tell()

    @property
    def unfinished_line(self) -> int | None:
        """Number of the last line where it has no line end although all its columns are there; None otherwise."""
        return None if self._line_ended else self._lines_read

    def rows(self) -> Iterator[RawRow]:
        """The rows after the header; empty lines are none.

        Raises:
            RawFileError: a line is no row of this table; the rows given so far are good.
        """
        width = len(self.header)
        number = 0
        while (line_and_cells := self._next_row()) is not None:
            line, cells = line_and_cells
            if not cells:
                continue
            if len(cells) != width:
                raise self._wrong_width(line, len(cells), width)
            number += 1
            yield RawRow(number, line, cells)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _decompressed(self, path: Path) -> BufferedReader | gzip.GzipFile:
        magic = self._file.read(4)
        self._file.seek(0)
        if magic.startswith(_GZIP_MAGIC):
            return gzip.GzipFile(fileobj=self._file)
        if magic == _ZIP_MAGIC:
            raise RawFileError(self.name, None, "is a zip archive", "unpack it and name the .csv file in it")
        if path.suffix == ".gz":
            raise RawFileError(self.name, None, "is not gzip, although its name says so", "rename it to .csv if it is plain text")
        return self._file

    def _lines(self) -> Iterator[str]:
        while True:
            number = self._lines_read + 1
            try:
                raw = self._stream.readline(_LONGEST_LINE + 1)
            except EOFError as error:
                raise RawFileError(self.name, number, "the gzip data is cut off in this line", _FETCH_AGAIN) from error
            except (OSError, zlib.error) as error:
                raise RawFileError(self.name, number, f"cannot be read from this line on ({error})", _FETCH_AGAIN) from error
            if not raw:
                return
            self._lines_read = number
            self._line_ended = raw.endswith(b"\n")
            if len(raw) > _LONGEST_LINE:
                raise RawFileError(
                    self.name, number, f"is longer than {_LONGEST_LINE} bytes, so it is no row", "check that it is the right file"
                )
            try:
                text = raw.decode(self._encoding)
            except UnicodeDecodeError as error:
                remedy = "for a file in another encoding pass --encoding, e.g. latin-1"
                raise RawFileError(self.name, number, f"is not {self._encoding} text", remedy) from error
            yield text.removeprefix("\ufeff") if number == 1 else text

    def _first_row(self) -> list[str]:
        found = self._next_row()
        if found is None:
            raise RawFileError(self.name, None, "is empty", _FETCH_AGAIN)
        return found[1]

    def _next_row(self) -> tuple[int, list[str]] | None:
        line = self._reader.line_num + 1
        try:
            return line, next(self._reader)
        except StopIteration:
            return None
        except csv.Error as error:
            if "unexpected end" in str(error):
                text = "a quotation mark is opened in this line and never closed: the file is cut off or damaged"
            elif self._lines_read > line:
                text = f"the row that begins here runs on to line {self._lines_read} by a stray quotation mark ({error})"
            else:
                text = f"is no CSV ({error})"
            raise RawFileError(self.name, line, text, _CORRECT) from error

    def _wrong_width(self, line: int, found: int, width: int) -> RawFileError:
        if found < width and not self._line_ended:
            return RawFileError(self.name, line, f"the last line is cut off: {found} of {width} columns and no line end", _FETCH_AGAIN)
        return RawFileError(self.name, line, f"has {found} columns, the header has {width}", _CORRECT)
