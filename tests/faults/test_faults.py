"""The short form of `make faults-stream`: one fault with its control, on the session's stack."""

from __future__ import annotations

import subprocess
import sys

import pytest

from crm_assets.streaming.crash_points import CrashPoint
from crm_resources.settings import REPOSITORY
from tests.faults.data_set import Ground
from tests.faults.experiments_crash import crash_points
from tests.faults.trial import Control, Finding, Invariant, Trial

HELD, BROKEN = Finding(True, ""), Finding(False, "")


@pytest.fixture
def ground(stack_services: object, stack_environ: dict[str, str]) -> Ground:
    return Ground(stack_environ, say=lambda _what: None, rate=300, crash_points=(CrashPoint.REFINE_BETWEEN_TABLES.value,))


@pytest.mark.integration
def test_a_driver_that_dies_between_its_writes_loses_and_doubles_nothing_and_its_control_does(ground: Ground) -> None:
    trial = crash_points(ground)

    assert trial.passed, trial.complaints()


def test_each_protection_is_where_the_controls_take_it_away() -> None:
    code = "from tests.faults.unprotected import Protection, take_away; take_away(Protection)"

    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_a_control_that_breaks_nothing_fails_its_trial() -> None:
    held, broken = {Invariant.I2: HELD}, {Invariant.I2: BROKEN}
    needed = frozenset({Invariant.I2})

    assert Trial("F9", "f9", "", held, (Control("", needed, broken),)).passed
    assert not Trial("F9", "f9", "", held, (Control("", needed, held),)).passed
    assert not Trial("F9", "f9", "", held, (Control("", needed, {Invariant.I5: BROKEN}),)).passed
    assert not Trial("F9", "f9", "", held).passed
    assert not Trial("F9", "f9", "", held, (Control("", needed, broken),), not_done=("no driver died",)).passed
    assert not Trial("F9", "f9", "", broken, (Control("", needed, broken),)).passed
