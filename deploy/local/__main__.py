"""The commands of the local stack: `python -m deploy.local up`, and what `make` calls.

Belongs here: arguments, tables, exit codes. Not here: what the commands do (`stack`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated
from urllib.parse import unquote, urlsplit

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from crm_resources.report import Verdict, write_report
from crm_resources.settings import load_settings, wrong_settings
from crm_resources.supervisor import ProcessState, Service
from deploy.local import contracts, postgres, preflight
from deploy.local import jars as jar_files
from deploy.local.errors import StackError
from deploy.local.lake_choice import LakeKind
from deploy.local.ports import LOOPBACK
from deploy.local.reporter import Reporter
from deploy.local.stack import ServiceStatus, Stack, has_screen, log_tail

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Start, watch and stop the embedded stack: Kafka, PostgreSQL, Dagster and the stream, all on this machine's loopback. "
    "CRM_ENV names the data set (default `demo`), CRM_HOME the folder (default `.crm`).",
)
console = Console(highlight=False)

_STATE_COLOURS = {ProcessState.RUNNING: "green", ProcessState.STARTING: "yellow", ProcessState.FATAL: "red", ProcessState.BACKOFF: "red"}


@app.command()
def up(
    services_only: Annotated[bool, typer.Option("--services-only", help="Only Kafka and PostgreSQL, no Dagster.")] = False,
    lake: Annotated[
        LakeKind | None, typer.Option(help="What the data set's lake shall stand on; kept once it is chosen. Default: the local disk.")
    ] = None,
) -> None:
    """Start everything that is not running, wait until it answers, and show where it is."""
    started = datetime.now(UTC)
    with _told():
        settings = load_settings()
        stack = Stack(settings, Reporter(console), lake=lake)
        contracts.bring_up_to_date(settings, Reporter(console))
        try:
            result = stack.up(environment=not services_only)
        except StackError:
            write_report(settings.reports_dir, "up", Verdict.FAIL, _figures(stack.status()), started=started)
            raise
        services = stack.status()
        console.print(_table(services))
        if result.webserver:
            console.print(f"Dagster  [link={result.webserver}]{result.webserver}[/link]   data set [bold]{settings.env}[/bold]")
        console.print(f"Kafka    {result.kafka}")
        console.print(f"Postgres {result.postgres}   (`make psql`)")
        console.print(f"Lake     {result.lake}")
        if result.started:
            console.print(f"[green]up[/green] in {(datetime.now(UTC) - started).total_seconds():.1f} s")
        else:
            console.print("[green]Everything was up already; nothing to do.[/green]")
        write_report(
            settings.reports_dir, "up", Verdict.PASS, _figures(services) | {"services_started": len(result.started)}, started=started
        )


@app.command()
def down(
    environment_only: Annotated[
        bool, typer.Option("--environment-only", help="Only the services of this data set; Kafka and PostgreSQL go on.")
    ] = False,
) -> None:
    """Stop everything in order: the stream after its batch, then Dagster, then Kafka and PostgreSQL. No data is lost."""
    with _told():
        ran = Stack(load_settings(), Reporter(console)).down(only_environment=environment_only)
        console.print("[green]down[/green]" if ran else "Nothing was running.")


@app.command()
def status() -> None:
    """Show each service's state, process, memory and restarts. Exit code 1 when a service has failed for good."""
    started = datetime.now(UTC)
    with _told():
        settings = load_settings()
        services = Stack(settings, Reporter(console)).status()
        failed = [service for service in services if service.state is ProcessState.FATAL]
        verdict = Verdict.FAIL if failed else Verdict.PASS
        write_report(settings.reports_dir, "status", verdict, _figures(services), started=started)
        if not services:
            console.print("The stack is down; start it with `make up`.")
            return
        console.print(_table(services))
        for service in failed:
            console.print(
                f"[red]{service.service.value} of {service.group} has failed for good[/red] ({service.note}); {service.log} ends with:"
            )
            console.print(log_tail(service.log), markup=False)
        if failed:
            console.print("Mend the cause, then `make up` tries again.")
            raise typer.Exit(1)


@app.command(name="open")
def open_ui() -> None:
    """Print the address of the data set's web UI, and open it in a browser where there is one."""
    with _told():
        stack = Stack(load_settings(), Reporter(console))
        address = stack.web_ui()
        console.print(address)
        if not (has_screen(os.environ) and webbrowser.open(address)):
            console.print("No browser could be started here; open the address in one on this machine.")


@app.command()
def logs(
    service: Annotated[str, typer.Argument(help=f"One of {', '.join(s.value for s in Service)}; all when omitted.")] = "",
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="Lines of the past.")] = 40,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", "-f", help="Go on showing what is added.")] = False,
) -> None:
    """Show the end of one service's log, or of all."""
    with _told():
        settings = load_settings()
        if service and service not in {s.value for s in Service}:
            raise StackError(f"there is no service {service}", f"name one of {', '.join(s.value for s in Service)}")
        wanted = [Service(service)] if service else list(Service)
        files = [str(path) for s in wanted if (path := s.log_file(settings)).exists()]
        if not files:
            raise StackError(f"no log yet under {settings.home}", "start the stack with `make up`")
        arguments = ["tail", "-n", str(lines), *(["-F"] if follow else []), *files]
        os.execvp(arguments[0], arguments)  # noqa: S606 -- becomes `tail`, which ends with the terminal


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def psql(context: typer.Context) -> None:
    """Open `psql` on the data set's database; arguments are handed on, e.g. `-c 'select count(*) from marts.fct_orders'`."""
    with _told():
        settings = load_settings()
        program = shutil.which("psql") if settings.warehouse_dsn else str(postgres.program("psql"))
        if program is None:
            raise StackError("no `psql` on PATH", "install it (Debian: `apt install postgresql-client`)")
        parts = urlsplit(postgres.server_dsn(settings, settings.database))
        environ = {
            **os.environ,
            "PGHOST": parts.hostname or LOOPBACK,
            "PGPORT": str(parts.port or 5432),
            "PGUSER": unquote(parts.username or ""),
            "PGPASSWORD": unquote(parts.password or ""),
            "PGDATABASE": settings.database,
        }
        os.execvpe(program, [program, *context.args], environ)  # noqa: S606 -- becomes `psql`


@app.command()
def clean(
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without this nothing is deleted.")] = False,
    jars: Annotated[bool, typer.Option("--jars", help="Also the fetched jars, which take half a minute to come back.")] = False,
) -> None:
    """Stop the stack and delete its data: every data set, Kafka, PostgreSQL, logs, secrets and reports."""
    with _told():
        settings = load_settings()
        kept = {"tools"} if jars else {"tools", "jars"}
        doomed = sorted(path for path in settings.home.glob("*") if path.name not in kept) if settings.home.exists() else []
        if not doomed:
            console.print(f"Nothing to delete in {settings.home}.")
            return
        if not yes:
            names = ", ".join(path.name for path in doomed)
            raise StackError(f"this would delete {names} in {settings.home} for good", "say `make clean YES=1` to do it")
        Stack(settings, Reporter(console)).down()
        for path in (*doomed, settings.home / ".lock"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        console.print(f"[green]deleted[/green] {', '.join(path.name for path in doomed)} in {settings.home}")


@app.command()
def jars(
    relock: Annotated[bool, typer.Option("--relock", help="Resolve anew and rewrite the lock file instead.")] = False,
) -> None:
    """Fetch the Java libraries of the lock file that are not there yet."""
    with _told():
        preflight.demand(preflight.check_java())
        if relock:
            with Reporter(console).step("resolving the jars anew"):
                lock = jar_files.relock()
            console.print(f"locked {', '.join(f'{len(group)} for {name}' for name, group in lock.items())} in {jar_files.LOCK_FILE}")
            return
        settings = load_settings()
        with Reporter(console).jars() as progress:
            lock = jar_files.needed(jar_files.read_lock(), object_store=settings.lake_on_object_store)
            fetched = jar_files.ensure(settings.jars_root, lock, progress=progress)
        console.print(f"{fetched} jars fetched into {settings.jars_root}" if fetched else f"All jars in {settings.jars_root} are whole.")


@app.command()
def doctor() -> None:
    """Look at what this machine must have; exit code 1 when something is missing."""
    with _told():
        settings = load_settings()
        findings = [
            preflight.check_java(),
            preflight.check_disk(settings.home),
            preflight.check_jars(settings.jars_root, jar_files.needed(jar_files.read_lock(), object_store=settings.lake_on_object_store)),
        ]
        for finding in findings:
            mark = "[red]✗[/red]" if finding.problem else "[green]✓[/green]"
            console.print(f"{mark} {finding.subject}: {finding.problem or finding.found}", soft_wrap=True)
        if any(finding.problem for finding in findings):
            raise typer.Exit(1)


@app.command(name="exec", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def execute(context: typer.Context) -> None:
    """Run a tool with the data set's environment, e.g. `exec dagster asset materialize --select rfm_scores -w workspace.yaml`."""
    done = subprocess.run([sys.executable, "-m", "deploy.local.run", *context.args], check=False)
    raise typer.Exit(done.returncode)


@contextmanager
def _told() -> Iterator[None]:
    """What a person can mend is told on one line, without a traceback."""
    try:
        yield
    except StackError as error:
        console.print(f"[red]error:[/red] {error}", markup=True, soft_wrap=True)
        raise typer.Exit(1) from error
    except OSError as error:
        console.print(f"[red]error:[/red] {error}; see that {error.filename or 'the place'} is yours and the disk has room", soft_wrap=True)
        raise typer.Exit(1) from error
    except ValidationError as error:
        for problem in wrong_settings(error):
            console.print(f"[red]error:[/red] {escape(problem)}", soft_wrap=True)
        raise typer.Exit(1) from error


def _table(services: Sequence[ServiceStatus]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("service", "of", "state", "pid", "up for", "port", "MiB", "restarts"):
        table.add_column(name, justify="right" if name in {"pid", "up for", "port", "MiB", "restarts"} else "left", no_wrap=True)
    for status_ in services:
        colour = _STATE_COLOURS.get(status_.state, "dim")
        uptime = "" if status_.uptime_seconds is None else str(timedelta(seconds=int(status_.uptime_seconds)))
        table.add_row(
            status_.service.value,
            "all data sets" if status_.service.is_shared else status_.group,
            f"[{colour}]{status_.state.value}[/{colour}]",
            str(status_.pid or ""),
            uptime,
            str(status_.port or ""),
            f"{status_.memory_mib:.0f}" if status_.pid else "",
            str(status_.restarts),
        )
    return table


def _figures(services: Sequence[ServiceStatus]) -> dict[str, float]:
    return {
        "services_running": sum(1 for s in services if s.state is ProcessState.RUNNING),
        "services_failed": sum(1 for s in services if s.state is ProcessState.FATAL),
        "restarts": sum(s.restarts for s in services),
        "memory_mib": round(sum(s.memory_mib for s in services), 1),
    }


if __name__ == "__main__":
    app()
