"""Running dbt of this installation as a command, with none of this process's own settings.

Belongs here: which program, which project, where it writes. Not here: what is asked of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from crm_resources.settings import REPOSITORY

PROJECT = REPOSITORY / "dbt"


def program() -> str:
    """The dbt of this installation, wherever PATH points."""
    return os.fspath(Path(sys.executable).with_name("dbt"))


def run_dbt(
    arguments: Sequence[str], *, folder: Path | str, variables: Mapping[str, str] | None = None, project: Path = PROJECT
) -> subprocess.CompletedProcess[str]:
    """Run dbt and wait for it; whether it succeeded is for the caller to see.

    Args:
        arguments: command and options, e.g. `("build",)`.
        folder: where it keeps what it parses, writes and logs.
        variables: of the data set, see `crm_resources.warehouse.dbt_environment`; none for a command without a database.
        project: folder of the project.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("CRM_", "DBT_"))}
    command = [program(), *command_line(arguments, folder=folder, project=project)]
    return subprocess.run(command, env=inherited | dict(variables or {}), capture_output=True, text=True, check=False)


def command_line(arguments: Sequence[str], *, folder: Path | str, project: Path = PROJECT) -> list[str]:
    """What dbt is called with: the arguments and the places; see `run_dbt`."""
    places = ("--project-dir", os.fspath(project), "--profiles-dir", os.fspath(project))
    targets = ("--target-path", os.fspath(folder), "--log-path", os.fspath(folder))
    return [*arguments, *places, *targets, "--no-version-check"]
