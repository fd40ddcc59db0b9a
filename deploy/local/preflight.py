"""What the machine must have before anything starts: Java, disk, whole jars. Decides and words the remedy."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from deploy.local.errors import StackError
from deploy.local.jars import JarState, Lock, inspect

OLDEST_JAVA = 17
LEAST_FREE_GIB = 3
"""Jars, PostgreSQL, Kafka's segments and a first data set take about 1.5 GiB; the rest is room to work."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `problem` is None when it is fine."""

    subject: str
    found: str
    problem: StackError | None = None


def check_java(java: str = "java") -> Finding:
    """Whether a Java that Kafka and Spark can use is on PATH."""
    remedy = f"install Java {OLDEST_JAVA} or newer (Debian: `apt install openjdk-17-jre-headless`) and put it on PATH"
    path = shutil.which(java)
    if path is None:
        return Finding("Java", "absent", StackError("no `java` on PATH", remedy))
    try:
        shown = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("Java", "broken", StackError(f"{path} does not run ({error})", remedy))
    version = java_major(shown.stderr + shown.stdout)
    if version is None:
        return Finding("Java", "broken", StackError(f"`{path} -version` names no version", remedy))
    if version < OLDEST_JAVA:
        return Finding("Java", str(version), StackError(f"{path} is Java {version}, at least {OLDEST_JAVA} is needed", remedy))
    return Finding("Java", f"{version} ({path})")


def java_major(text: str) -> int | None:
    """Major version from what `java -version` prints; `1.8.0` is 8. None when there is no version in it."""
    match = re.search(r'version "(?:1\.)?(\d+)', text)
    return int(match.group(1)) if match else None


def check_disk(home: Path, least_gib: float = LEAST_FREE_GIB) -> Finding:
    """Whether the disk under the home has room."""
    place = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(place).free / 2**30
    if free < least_gib:
        problem = StackError(
            f"{free:.1f} GiB free under {place}, at least {least_gib:g} GiB are needed", "free some space or set CRM_HOME to another disk"
        )
        return Finding("disk", f"{free:.1f} GiB free", problem)
    return Finding("disk", f"{free:.0f} GiB free")


def check_jars(root: Path, lock: Lock) -> Finding:
    """Whether every locked jar stands whole."""
    states = inspect(root, lock)
    bad = {jar.file: state for (_, jar), state in states.items() if state is not JarState.WHOLE}
    if bad:
        damaged = [name for name, state in bad.items() if state is JarState.DAMAGED]
        which = f"{damaged[0]} is damaged" if damaged else f"{next(iter(bad))} is missing"
        problem = StackError(f"{len(bad)} of {len(states)} jars in {root} are not whole ({which})", "run `make up` to fetch them")
        return Finding("jars", f"{len(bad)} not whole", problem)
    return Finding("jars", f"{len(states)} whole")


def demand(*findings: Finding) -> None:
    """Stop at the first thing that is not fine.

    Raises:
        StackError: what is wrong and its remedy.
    """
    for finding in findings:
        if finding.problem is not None:
            raise finding.problem
