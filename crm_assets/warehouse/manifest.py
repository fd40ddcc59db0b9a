"""What is kept of the dbt project in the repository: its manifest and column lineage, without anything of one machine or run.

Belongs here: running `dbt compile` offline, normalising what it writes, telling whether the kept files are stale. Not here: how
lineage is read from SQL (`lineage`), or how Dagster uses the manifest (`assets`).

`python -m crm_assets.warehouse.manifest` rewrites `dbt/manifest.json` and `dbt/column_lineage.json`; with `--check` it only tells, with
exit code 1 when one is stale.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from crm_assets.warehouse.dbt_command import PROJECT, run_dbt
from crm_assets.warehouse.lineage import LINEAGE, column_lineage, lineage_text
from crm_resources.settings import REPOSITORY

MANIFEST = PROJECT / "manifest.json"
EPOCH = "1970-01-01T00:00:00Z"

_OF_A_RUN: dict[str, object] = {
    "generated_at": EPOCH,
    "invocation_started_at": EPOCH,
    "run_started_at": EPOCH,
    "invocation_id": "00000000-0000-0000-0000-000000000000",
    "user_id": None,
    "env": {},
}
_OF_A_MACHINE = ("created_at", "build_path", "compiled_path", "root_path", "compiled", "compiled_code", "extra_ctes", "extra_ctes_injected")


class ManifestError(RuntimeError):
    """dbt could not read the project; the message holds what it said."""


def compile_project(project: Path = PROJECT) -> dict[str, Any]:
    """Manifest of the project as `dbt compile` writes it, with no service, no cache and none of this process's settings.

    Raises:
        ManifestError: a model, a yml file or the project file has an error.
    """
    with tempfile.TemporaryDirectory(prefix="crm-dbt-") as folder:
        offline = ("--no-introspect", "--no-populate-cache", "--no-partial-parse", "--quiet")
        done = run_dbt(("compile", *offline), folder=folder, project=project)
        if done.returncode:
            raise ManifestError(f"dbt compile failed in {project}:\n{done.stdout}{done.stderr}".strip())
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
    """Text of the kept file: nodes sorted, one a line, so that a change shows where it is; columns stay in their order."""
    sections = []
    for name in sorted(manifest):
        value = manifest[name]
        if isinstance(value, dict) and value and name != "metadata":
            body = ",\n".join(f"    {json.dumps(key)}: {json.dumps(value[key])}" for key in sorted(value))
            sections.append(f"  {json.dumps(name)}: {{\n{body}\n  }}")
        else:
            sections.append(f"  {json.dumps(name)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(sections) + "\n}\n"


def kept_files(project: Path = PROJECT) -> dict[Path, str]:
    """What the kept files should hold now.

    Raises:
        ManifestError: the project does not compile.
    """
    compiled = compile_project(project)
    return {MANIFEST: manifest_text(normalised(compiled)), LINEAGE: lineage_text(column_lineage(compiled))}


def stale_files() -> list[Path]:
    """Kept files that are absent or differ from what the project says now."""
    return [path for path, text in kept_files().items() if not path.exists() or path.read_text() != text]


def write_files() -> list[Path]:
    """Rewrite the stale files and return them."""
    written = []
    for path, text in kept_files().items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            written.append(path)
    return written


def _without_run(node: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in node.items() if key not in _OF_A_MACHINE}
    depends = kept.get("depends_on")
    if isinstance(depends, dict):
        kept["depends_on"] = {**depends, "macros": []}
    return kept


def main() -> None:
    """Command line: rewrite the kept files, or with `--check` tell whether they are stale."""
    import typer

    def run(check: bool = typer.Option(False, "--check", help="Change nothing; exit code 1 when a kept file is stale.")) -> None:
        """Keep the manifest and the column lineage in step with the dbt project."""
        try:
            changed = stale_files() if check else write_files()
        except ManifestError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from error
        for path in changed:
            typer.echo(
                f"{path.relative_to(REPOSITORY)} {'is stale; run python -m crm_assets.warehouse.manifest' if check else 'rewritten'}"
            )
        raise typer.Exit(1 if check and changed else 0)

    typer.run(run)


if __name__ == "__main__":
    main()
