"""Reading tables: what was written is read back, and wherever a file is cut off, it is noticed."""

from __future__ import annotations

import csv
import gzip
import io
import tempfile
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from generator.raw_reader import RawFileError, RawTable

HEADER = ["one", "two", "three"]
CELLS = st.text(st.sampled_from('a7 ",;\n\r\té€😀'), max_size=6)
TABLES = st.lists(st.lists(CELLS, min_size=3, max_size=3), max_size=5)


def as_csv(rows: list[list[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerows([HEADER, *rows])
    return text.getvalue().encode()


def read(content: bytes) -> tuple[list[list[str]], RawFileError | None, int | None]:
    """Rows, what ended them, and the last line where it lacks its end."""
    with tempfile.NamedTemporaryFile(suffix=".csv") as file:
        file.write(content)
        file.flush()
        rows: list[list[str]] = []
        try:
            table = RawTable(Path(file.name))
        except RawFileError as error:
            return rows, error, None
        try:
            rows.extend(row.cells for row in table.rows())
        except RawFileError as error:
            return rows, error, None
        finally:
            table.close()
        return rows, None, table.unfinished_line


@given(TABLES)
@settings(max_examples=150, deadline=None)
def test_a_table_is_read_as_it_was_written(rows: list[list[str]]) -> None:
    assert read(as_csv(rows)) == (rows, None, None)
    assert read(gzip.compress(as_csv(rows))) == (rows, None, None)


@given(TABLES, st.floats(0, 1))
@example([["a", "b", '"c"']], 0.99)
@settings(max_examples=300, deadline=None)
def test_a_file_cut_off_anywhere_gives_whole_rows_and_is_noticed(rows: list[list[str]], where: float) -> None:
    content = as_csv(rows)[: int(where * len(as_csv(rows)))]
    found, problem, unfinished_line = read(content)
    whole = found if problem or not unfinished_line else found[:-1]
    assert whole == rows[: len(whole)]
    at_the_end_of_a_row = any(content == as_csv(rows[:n]) for n in range(len(rows) + 1))
    assert at_the_end_of_a_row or problem or unfinished_line
    if problem and problem.line:
        assert problem.line <= content.count(b"\n") + 1


@given(TABLES.filter(bool), st.integers(1, 8))
@settings(max_examples=100, deadline=None)
def test_a_gzip_file_that_lacks_its_end_is_noticed(rows: list[list[str]], lacking: int) -> None:
    found, problem, _ = read(gzip.compress(as_csv(rows))[:-lacking])
    assert found == rows[: len(found)]
    assert problem is not None
    assert "the gzip data is cut off" in str(problem)
