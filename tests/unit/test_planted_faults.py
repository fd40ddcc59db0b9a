"""The declared faults fit the checkout, and exit codes are read rightly."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from crm_resources.settings import REPOSITORY
from tests.planted_faults.faults import FAULTS, Area
from tests.planted_faults.planting import NO_END, Outcome, StaleFault, first_failure, outcome_of, stale, with_fault


def test_every_line_is_there_once_and_every_file_of_tests_exists() -> None:
    assert stale(FAULTS, REPOSITORY) == []


def test_there_are_enough_faults_in_every_area() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 25
    assert min(Counter(fault.area for fault in FAULTS)[area] for area in Area) >= 5


@pytest.mark.parametrize(
    ("control", "planted", "expected"),
    [
        (0, 1, Outcome.CAUGHT),
        (0, 0, Outcome.MISSED),
        (1, 1, Outcome.ERROR),
        *((0, code, Outcome.ERROR) for code in (2, 3, 4, 5, NO_END, -9)),
        *((code, 1, Outcome.ERROR) for code in (2, 3, 4, 5, NO_END)),
    ],
)
def test_only_tests_that_pass_without_the_fault_and_fail_with_it_catch_it(control: int, planted: int, expected: Outcome) -> None:
    assert outcome_of(control, planted) is expected


def test_a_fault_changes_its_line_and_nothing_else() -> None:
    fault = replace(FAULTS[0], line="b = 1", replacement="b = 2")
    assert with_fault("a = 1\n    b = 1\nb = 10\n", fault) == "a = 1\n    b = 2\nb = 10\n"


@pytest.mark.parametrize("text", ["a = 1\n", "b = 1\nif a:\n    b = 1\n"])
def test_a_line_that_is_not_there_once_is_named_with_its_file(text: str) -> None:
    fault = replace(FAULTS[0], line="b = 1", replacement="b = 2")
    with pytest.raises(StaleFault, match=rf"{fault.file} must hold this line once, but holds it {text.count('b = 1')} times: 'b = 1'"):
        with_fault(text, fault)


def test_what_a_checkout_lacks_is_named(tmp_path: Path) -> None:
    python, product, tests = stale(FAULTS[:1], tmp_path)
    assert "make setup" in python
    assert FAULTS[0].file in product
    assert FAULTS[0].tests.file in tests


def test_the_summary_names_who_caught_it() -> None:
    assert first_failure("1 failed\nFAILED tests/a.py::test_b[some words] - assert 1 == 2\nFAILED tests/a.py::c\n") == (
        "tests/a.py::test_b[some words]"
    )
    assert first_failure("3 passed") == ""
