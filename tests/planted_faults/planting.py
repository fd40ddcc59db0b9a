"""Planting a fault into a copy of the checkout, running its tests there, and what their exit codes mean.

Belongs here: the copy, the processes, the verdict. Not here: which faults there are (`faults`) and how they are shown (`__main__`).
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tests.planted_faults.faults import Fault, Tests

RUN_SECONDS = 600
"""Longest time of one run of tests; the longest was measured at about a minute."""

END_SECONDS = 60
"""How long tests that are told to end may take to stop their services."""

PASSED, FAILED, NO_END = 0, 1, -1
"""Exit codes: pytest's of tests that passed and failed, and ours of a run that had to be ended."""

_OF_THE_CALLER = ("CRM_", "DAGSTER_", "DBT_", "PYTEST_", "PYTHON")
"""Variables by their beginning that the tests must not see."""


class StaleFault(ValueError):
    """A declared line does not occur exactly once in its file; the message names both."""


class Outcome(StrEnum):
    """What became of a planted fault."""

    CAUGHT = "caught"
    MISSED = "MISSED"
    ERROR = "ERROR"


@dataclass(frozen=True)
class Run:
    """One run of pytest: its exit code, the first test that failed, how long it took, and the end of what it said."""

    code: int
    failed: str
    seconds: float
    output: str


@dataclass(frozen=True)
class Result:
    """A fault with the run of its tests without it (`control`) and with it."""

    fault: Fault
    control: Run
    planted: Run

    @property
    def outcome(self) -> Outcome:
        """What became of the fault."""
        return outcome_of(self.control.code, self.planted.code)


def outcome_of(control: int, planted: int) -> Outcome:
    """What two exit codes of pytest say of a fault; pure.

    Args:
        control: exit code of the tests without the fault. Unless they pass, their failing says nothing.
        planted: exit code with the fault. Only 1, tests failed, is a catch: 2 to 5 are interruptions, internal errors, wrong usage, and
            no tests at all.
    """
    if control != PASSED or planted not in (PASSED, FAILED):
        return Outcome.ERROR
    return Outcome.CAUGHT if planted == FAILED else Outcome.MISSED


def with_fault(text: str, fault: Fault) -> str:
    """The file's text with the fault in it; pure.

    Raises:
        StaleFault: the line does not occur exactly once.
    """
    lines = text.splitlines(keepends=True)
    places = [n for n, line in enumerate(lines) if line.strip() == fault.line]
    if len(places) != 1:
        raise StaleFault(
            f"{fault.name}: {fault.file} must hold this line once, but holds it {len(places)} times: {fault.line!r}. "
            "Bring tests/planted_faults/faults.py up to date"
        )
    lines[places[0]] = lines[places[0]].replace(fault.line, fault.replacement)
    return "".join(lines)


def stale(faults: Iterable[Fault], root: Path) -> list[str]:
    """What is wrong with declarations for a checkout, one line each."""
    python = root / ".venv/bin/python"
    complaints = [] if python.exists() else [f"there is no {python}; name a checkout with --root, and run `make setup` in it"]
    for fault in faults:
        try:
            with_fault((root / fault.file).read_text(), fault)
        except (StaleFault, OSError) as error:
            complaints.append(str(error))
        if not (root / fault.tests.file).is_file():
            complaints.append(f"{fault.name}: there is no {fault.tests.file}")
    return complaints


def run_tests(root: Path, tests: Tests, environ: Mapping[str, str], stop: threading.Event, fault: Fault | None = None) -> Run:
    """Run tests in a fresh copy of a checkout, with a fault in it or without one.

    Args:
        root: the checkout; it is only read.
        tests: which tests.
        environ: variables of the tests, see `environ_of`.
        stop: when it is set, the tests are told to end.
        fault: what to plant; nothing when omitted.
    """
    began = time.monotonic()
    command = [str(root / ".venv/bin/python"), "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", tests.file]
    command += ["-k", tests.keyword] if tests.keyword else []
    with copy_of(root) as copy:
        if fault is not None:
            place = copy / fault.file
            place.write_text(with_fault(place.read_text(), fault))
        environ = {**environ, "PYTHONPATH": str(copy)}
        if foreign := _imported_from_elsewhere(copy, command[0], environ, fault):
            return Run(NO_END, "", time.monotonic() - began, f"{foreign} would be tested, not the copy in {copy}")
        code, output = _end_of(command, copy, environ, stop)
    return Run(code, first_failure(output), time.monotonic() - began, output[-4000:])


def environ_of(root: Path, jars: Path, variables: Mapping[str, str]) -> dict[str, str]:
    """Variables for tests in a copy: nothing of the caller's but where the Java libraries and the real data are.

    Args:
        root: the checkout.
        jars: folder of the Java libraries.
        variables: the caller's.
    """
    plain = {name: value for name, value in variables.items() if not name.startswith(_OF_THE_CALLER)}
    data = variables.get("CRM_SHARED_DATA") or str(root.parent / "shared" / "data")
    return {**plain, "CRM_JARS_DIR": str(jars), "CRM_SHARED_DATA": data}


@contextmanager
def copy_of(root: Path) -> Iterator[Path]:
    """The tracked files of a checkout, as they are now, in a folder of their own that is gone afterwards; `.venv` is a link."""
    # Git is wherever PATH says.
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True)  # noqa: S607
    with tempfile.TemporaryDirectory(prefix="crm-fault-") as folder:
        copy = Path(folder).resolve()
        for name in filter(None, listed.stdout.split("\0")):
            if (root / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(root / name, copy / name)
        (copy / ".venv").symlink_to(root / ".venv")
        yield copy


def first_failure(output: str) -> str:
    """Test that pytest's summary names first; pure."""
    found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output, re.MULTILINE)
    return found[1] if found else ""


def _imported_from_elsewhere(copy: Path, python: str, environ: Mapping[str, str], fault: Fault | None) -> str:
    """File outside of the copy that a process of the tests would import; nothing when all is well.

    The installation's own path leads to the checkout: were it to go first, every fault would be missed.
    """
    modules = ["crm_resources.settings", "crm_assets.warehouse.dbt_command", "generator", "deploy.local", "tests.conftest"]
    if fault is not None and fault.file.endswith(".py"):
        modules.append(fault.file.removesuffix(".py").replace("/", "."))
    script = f"from importlib.util import find_spec\nfor name in {modules}: print(find_spec(name).origin)"
    done = subprocess.run([python, "-c", script], cwd=copy, env=dict(environ), capture_output=True, text=True, check=False)
    if done.returncode:
        return done.stderr[-1000:] or "nothing"
    return next((origin for origin in done.stdout.split() if not Path(origin).resolve().is_relative_to(copy)), "")


def _end_of(command: list[str], folder: Path, environ: Mapping[str, str], stop: threading.Event) -> tuple[int, str]:
    """Exit code and output of tests; those that do not come to an end, or are stopped, are ended with what they started."""
    deadline = time.monotonic() + RUN_SECONDS
    with (
        tempfile.TemporaryFile("w+") as output,
        subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environ),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        ) as process,
    ):
        while process.poll() is None and time.monotonic() < deadline and not stop.is_set():
            with suppress(subprocess.TimeoutExpired):
                process.wait(1)
        code = process.poll()
        if code is None:
            process.send_signal(signal.SIGINT)  # pytest stops the services it started
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        output.seek(0)
        said = output.read()
    return (NO_END, f"{said}\nwas ended; a run may take {RUN_SECONDS} s") if code is None else (code, said)
