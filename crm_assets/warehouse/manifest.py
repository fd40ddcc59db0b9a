"""The dbt manifest that is kept in the repository: made offline, without anything that differs from machine to machine.

Belongs here: running `dbt parse`, normalising what it writes, telling whether the kept file is stale. Not here: how Dagster reads it
(`crm_assets.warehouse.assets`).

`python -m crm_assets.warehouse.manifest` rewrites `dbt/manifest.json`; with `--check` it only tells, with exit code 1 when stale.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from crm_resources.settings import REPOSITORY

PROJECT = REPOSITORY / "dbt"
MANIFEST = PROJECT / "manifest.json"
EPOCH = "1970-01-01T00:00:00Z"

_OF_A_RUN = {
    "generated_at": EPOCH,
    "invocation_started_at": EPOCH,
    "run_started_at": EPOCH,
    "invocation_id": "00000000-0000-0000-0000-000000000000",
    "user_id": None,
    "env": {},
}
_PER_NODE = {"created_at": 0.0, "build_path": None, "compiled_path": None, "root_path": None}


class ManifestError(RuntimeError):
    """dbt could not parse the project; the message holds what it said."""


def parse_project(project: Path = PROJECT) -> dict[str, Any]:
    """Manifest of the project as `dbt parse` writes it, with no service, no cache and none of this process's settings.

    Raises:
        ManifestError: a model, a yml file or the project file has an error.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("CRM_", "DBT_"))}
    with tempfile.TemporaryDirectory(prefix="crm-dbt-") as folder:
        command = [sys.executable, "-m", "dbt.cli.main", "parse", "--no-partial-parse", "--quiet", "--no-version-check"]
        places = ["--project-dir", str(project), "--profiles-dir", str(project), "--target-path", folder, "--log-path", folder]
        done = subprocess.run([*command, *places], env=inherited, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ManifestError(f"dbt parse failed in {project}:\n{done.stdout}{done.stderr}".strip())
        manifest: dict[str, Any] = json.loads((Path(folder) / "manifest.json").read_text())
    return manifest


def normalised(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest without times, paths of this machine and ids of the run, and without macros, which only dbt itself runs."""
    kept = dict(manifest)
    kept["metadata"] = {**manifest["metadata"], **_OF_A_RUN}
    kept["macros"] = {}
    kept["docs"] = {}
    for section in ("nodes", "sources", "groups", "unit_tests", "exposures"):
        kept[section] = {unique_id: _without_run(node) for unique_id, node in manifest.get(section, {}).items()}
    for section in ("parent_map", "child_map", "group_map"):
        kept[section] = {unique_id: sorted(others) for unique_id, others in manifest.get(section, {}).items()}
    return kept


def manifest_text(manifest: dict[str, Any]) -> str:
    """Text of the kept file: sorted, one node a line, so that a change shows where it is."""
    sections = []
    for name in sorted(manifest):
        value = manifest[name]
        if isinstance(value, dict) and value and name != "metadata":
            body = ",\n".join(f"    {json.dumps(key)}: {json.dumps(value[key], sort_keys=True)}" for key in sorted(value))
            sections.append(f"  {json.dumps(name)}: {{\n{body}\n  }}")
        else:
            sections.append(f"  {json.dumps(name)}: {json.dumps(value, sort_keys=True)}")
    return "{\n" + ",\n".join(sections) + "\n}\n"


def is_stale() -> bool:
    """Whether the kept manifest differs from what the project says now."""
    return not MANIFEST.exists() or MANIFEST.read_text() != manifest_text(normalised(parse_project()))


def write() -> bool:
    """Rewrite the kept manifest; returns whether it changed."""
    text = manifest_text(normalised(parse_project()))
    changed = not MANIFEST.exists() or MANIFEST.read_text() != text
    if changed:
        MANIFEST.write_text(text)
    return changed


def _without_run(node: dict[str, Any]) -> dict[str, Any]:
    kept = {**node, **{key: value for key, value in _PER_NODE.items() if key in node}}
    depends = kept.get("depends_on")
    if isinstance(depends, dict):
        kept["depends_on"] = {**depends, "macros": []}
    return kept


def main() -> None:
    """Command line: rewrite the manifest, or with `--check` tell whether it is stale."""
    import typer

    def run(check: bool = typer.Option(False, "--check", help="Change nothing; exit code 1 when the kept manifest is stale.")) -> None:
        """Keep `dbt/manifest.json` in step with the dbt project."""
        try:
            if not check:
                typer.echo(f"{MANIFEST.relative_to(REPOSITORY)}: {'rewritten' if write() else 'up to date'}")
            elif is_stale():
                typer.echo("dbt/manifest.json is stale; rewrite it with `python -m crm_assets.warehouse.manifest`", err=True)
                raise typer.Exit(1)
        except ManifestError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from error

    typer.run(run)


if __name__ == "__main__":
    main()
