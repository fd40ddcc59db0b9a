"""A file of histories with something wrong in it: the error names the line and the column."""

from __future__ import annotations

from pathlib import Path

import pytest

from crm_assets.warehouse.models.csv_file import CsvError, read_histories


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", r"line 1: no column x, t_x, T"),
        ("x,t_x\n1,2\n", r"line 1: no column T"),
        ("x,t_x,T,x\n1,2,3,4\n", r"line 1: column x stands there more than once"),
        ("x,t_x,T\n", r"no line below the header"),
        ("x,t_x,T\n1,2,3\n1,2\n", r"line 3: 2 fields where the header has 3"),
        ("x,t_x,T\n1,2,3\n\n", r"line 3: 0 fields"),
        ("x,t_x,T\n1,two,3\n", r"line 2, column t_x: 'two' is no number"),
        ("x,t_x,T\n1,2,nan\n", r"line 2, column T: 'nan' is not finite"),
        ("x,t_x,T\n1.5,2,3\n", r"line 2, column x: 1.5 is no whole number"),
        ("x,t_x,T\n-1,2,3\n", r"line 2, column x"),
        ("x,t_x,T\n1,-2,3\n", r"line 2, column t_x: -2 is below 0"),
        ("x,t_x,T\n1,4,3\n", r"line 2, column T: 3 is below t_x = 4"),
        ("x,t_x,T\n0,1,3\n", r"line 2, column t_x: 1 where x is 0"),
        ('x,t_x,T\n1,"2,3\n', r"line 2: unexpected end"),
    ],
)
def test_the_error_says_where(tmp_path: Path, text: str, error: str):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(CsvError, match=rf"bad\.csv.*{error}"):
        read_histories(path)


def test_bytes_that_are_no_text(tmp_path: Path):
    path = tmp_path / "bad.csv"
    path.write_bytes(b"x,t_x,T\n1,2,\xff\n")
    with pytest.raises(CsvError, match="UTF-8"):
        read_histories(path)


def test_other_columns_their_order_and_a_byte_order_mark_do_no_harm(tmp_path: Path):
    path = tmp_path / "good.csv"
    path.write_text("\ufeffid,T,x,t_x\r\n7,38.86,2,30.43\r\n8,38.86,0,0\r\n")
    seen = read_histories(path)
    assert (seen.repeats.tolist(), seen.last.tolist(), seen.age.tolist()) == ([2, 0], [30.43, 0.0], [38.86, 38.86])
