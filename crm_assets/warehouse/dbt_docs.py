"""`make dbt-docs`: dbt's documentation of the project as one HTML file: models, columns, tests, SQL, lineage; needs no server.

Belongs here: running `dbt docs generate` over the data set. Not here: what the documentation says, which stands in the models' yml files.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from crm_assets.warehouse.dbt_command import run_dbt
from crm_resources import warehouse
from crm_resources.command_end import failed
from crm_resources.settings import Settings, load_settings


class DocsError(RuntimeError):
    """dbt did not write its documentation; the message holds what it said."""


def generate(settings: Settings, target: Path) -> None:
    """Write the documentation of the project, with the tables' sizes and types as they are in the data set.

    Args:
        settings: data set, whose database must be up.
        target: file to write.

    Raises:
        DocsError: dbt refused.
        crm_resources.warehouse.WarehouseError: no connection.
    """
    warehouse.prepare(settings)
    # Of its own, so that a refresh that runs meanwhile finds what it parsed.
    folder = settings.environment_dir / "dbt-docs"
    done = run_dbt(("docs", "generate", "--static", "--quiet"), folder=folder, variables=warehouse.dbt_environment(settings))
    if done.returncode:
        raise DocsError(f"dbt docs failed:\n{done.stdout}{done.stderr}".strip())
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text((folder / "static_index.html").read_text())


def main() -> None:
    """Command line."""
    import json

    import typer
    from rich.console import Console
    from rich.table import Table

    from crm_assets.warehouse.manifest import MANIFEST
    from crm_resources.report import Verdict, write_report

    def run() -> None:
        """Write dbt's documentation of the data set CRM_ENV names into the reports folder."""
        settings, started = load_settings(), datetime.now(UTC)
        target = settings.reports_dir / f"dbt-docs-{settings.env}.html"
        try:
            generate(settings, target)
        except (DocsError, warehouse.WarehouseError) as error:
            raise failed(error) from error
        nodes = json.loads(MANIFEST.read_text())["nodes"].values()
        models = [node for node in nodes if node["resource_type"] == "model"]
        figures = {
            "models": len(models),
            "columns": sum(len(model["columns"]) for model in models),
            "tests": sum(node["resource_type"] == "test" for node in nodes),
        }
        table = Table("documented", "number", title="dbt documentation", title_justify="left")
        for name, number in figures.items():
            table.add_row(name, f"{number:,}")
        console = Console()
        console.print(table)
        console.print(f"page: {target}", soft_wrap=True, highlight=False)
        write_report(settings.reports_dir, "dbt-docs", Verdict.PASS, {name: float(n) for name, n in figures.items()}, started=started)

    typer.run(run)


if __name__ == "__main__":
    main()
