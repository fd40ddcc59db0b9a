"""`make demo-busy`: the whole demo beside busy loops that take the machine's cores away, which it must survive.

The loops are processes of this command; each ends by itself as soon as this command is gone, however it ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from crm_resources.command_end import leave_on_sigterm
from crm_resources.report import Verdict, write_report
from crm_resources.settings import REPOSITORY, load_settings

LOOP = """
import os, sys
while os.getppid() == int(sys.argv[1]):
    for _ in range(1_000_000):
        pass
"""


@contextmanager
def busy(loops: int) -> Iterator[list[int]]:
    """So many processes that use all they can get of a core each; yields their ids.

    Args:
        loops: how many.
    """
    running: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(loops):
            running.append(subprocess.Popen([sys.executable, "-c", LOOP, str(os.getpid())]))  # noqa: PERF401 -- those that were started must be ended
        yield [process.pid for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()


def figures_of(path: Path, started: datetime) -> tuple[Verdict, dict[str, float]]:
    """Verdict and figures of a demo that began after a time; it has failed where it left no report."""
    found: Mapping[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if not found or path.stat().st_mtime < started.timestamp():
        return Verdict.FAIL, {}
    return Verdict(found["verdict"]), dict(found["figures"])


def main(loops: Annotated[int, typer.Option(min=0, help="Busy loops beside the demo.")] = 12) -> None:
    """Run the demo beside busy loops, stop everything, and report its figures; exit code 1 when it fails."""
    started = datetime.now(UTC)
    settings = load_settings()
    leave_on_sigterm()
    with busy(loops), subprocess.Popen([sys.executable, "-m", "deploy.local.demo", "--exit"], cwd=REPOSITORY) as demo:
        try:
            code = demo.wait()
        finally:
            # Where this command is asked to end, so is the demo, which stops its services.
            demo.terminate()
    verdict, figures = figures_of(settings.reports_dir / "demo.json", started)
    passed = verdict is Verdict.PASS and code == 0
    path = write_report(
        settings.reports_dir, "demo-busy", Verdict.PASS if passed else Verdict.FAIL, {**figures, "busy_loops": loops}, started=started
    )
    typer.echo(f"{'passed' if passed else 'failed'} beside {loops} busy loops; report: {path}")
    raise typer.Exit(0 if passed else 1)


if __name__ == "__main__":
    typer.run(main)
