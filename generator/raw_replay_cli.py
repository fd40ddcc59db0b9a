"""The command `replay-raw`: public data sets in their own file formats, one message a row.

Belongs here: its arguments, the order of its steps, the table at the end. Not here: what a message holds (`raw_replay`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from crm_resources import kafka
from crm_resources.raw_topics import raw_ledger_dir, raw_topic_spec
from crm_resources.report import Verdict, write_report
from crm_resources.settings import Settings
from generator.console import Environment, Timeout, complain, err, errors, out, settings_of
from generator.delivery import DeliveryError, Outcome, deliver
from generator.interrupt import asked_to_stop
from generator.pacing import AsFastAsPossible, Pace, PerSecond
from generator.raw_formats import FORMATS, FormatName, RawFormat
from generator.raw_reader import RawFileError
from generator.raw_replay import InBatches, RawReplay, check

COMMAND = "replay-raw"


@dataclass(frozen=True)
class Sent:
    """What became of one file: `rows` were read from it, at most the limit. `unfinished_line` is its last one when it has no line end."""

    file: str
    topic: str
    rows: int
    outcome: Outcome
    problem: str | None
    unfinished_line: int | None

    @property
    def complete(self) -> bool:
        """Whether sent = acked = rows."""
        return self.problem is None and self.rows == self.outcome.offered == self.outcome.acked


def replay_raw(
    files: Annotated[list[Path], typer.Argument(help="Files of the data set, .csv or .csv.gz, sent in this order.")],
    env: Environment = None,
    format_name: Annotated[FormatName | None, typer.Option("--format", help="Format of all files. Default: told by the header.")] = None,
    messages_per_second: Annotated[
        float | None,
        typer.Option(min=0.001, help="A constant rate, kept whether the broker is quick or slow. Default: as fast as possible."),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, max=1_000_000, help="Rows that leave together at a rate (default 1), and the most in one request (default 10,000)."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many rows of each file.")] = None,
    check_first: Annotated[bool, typer.Option("--check-first", help="Read all files to their ends before the first row leaves.")] = False,
    check_only: Annotated[bool, typer.Option("--check-only", help="Read all files to their ends; send nothing.")] = False,
    encoding: Annotated[str, typer.Option(help="Encoding of the text; older copies are latin-1.")] = "utf-8",
    timeout: Timeout = kafka.DELIVERY_SECONDS,
) -> None:
    """Send the rows of Online Retail, RetailRocket or Avazu files as they are, one message a row, to topics of their own.

    The headers of all files are checked before anything is sent. A bad row ends the run at its line: the rows before it are sent and
    acknowledged. Sending a file again gives the same event ids.
    """
    with errors():
        settings = settings_of(env)
        wanted = FORMATS[format_name] if format_name else None
        pace = _pace(messages_per_second, batch_size)
        started = datetime.now(UTC)
        try:
            if check_first or check_only:
                for file in files:
                    with err.status(f"checking {file.name}"):
                        rows = check(file, wanted, encoding=encoding, limit=limit)
                    out.print(f"{file.name}: {rows:,} rows, no fault found", highlight=False)
            if check_only:
                return
            with ExitStack() as opened:
                replays = [opened.enter_context(RawReplay(file, wanted, encoding=encoding, limit=limit)) for file in files]
                _create_topics(settings, [r.format for r in replays])
                done = _send_all(settings, replays, pace, batch_size, timeout)
        except RawFileError as error:
            complain(f"{error}\nNothing was sent.")
            raise typer.Exit(2) from error
        _finish(settings, done, len(files), started)


def _pace(messages_per_second: float | None, batch_size: int | None) -> Pace:
    if messages_per_second is None:
        return AsFastAsPossible()
    return InBatches(PerSecond(messages_per_second), batch_size or 1)


def _create_topics(settings: Settings, formats: list[RawFormat]) -> None:
    names = sorted({f.name for f in formats})
    for line in kafka.ensure(settings, [raw_topic_spec(settings, name) for name in names]).describe():
        out.print(line, highlight=False)


def _send_all(settings: Settings, replays: list[RawReplay], pace: Pace, batch_size: int | None, timeout: float) -> list[Sent]:
    """One file after the other, up to the first that is not complete."""
    done: list[Sent] = []
    for replay in replays:
        try:
            done.append(_send(settings, replay, pace, batch_size, timeout))
        except (kafka.KafkaUnavailableError, kafka.TopicError) as error:
            if not done:
                raise
            complain(f"{replay.path.name}: {error}")
            break
        if not done[-1].complete:
            break
    return done


def _send(settings: Settings, replay: RawReplay, pace: Pace, batch_size: int | None, timeout: float) -> Sent:
    run_id = f"raw-{replay.format.name}-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    with _progress(replay) as progress, asked_to_stop() as stop:
        try:
            outcome = deliver(
                settings,
                run_id,
                replay.records(),
                pace=pace,
                plurals=(replay.plural,),
                progress=progress,
                stop=stop,
                delivery_timeout_seconds=timeout,
                ledger_folder=raw_ledger_dir(settings.environment_dir),
                producer_options={"batch.num.messages": batch_size} if batch_size else None,
            )
            problem = str(replay.problem) if replay.problem else None
        except DeliveryError as error:
            outcome, problem = error.outcome, str(error)
    topic = raw_topic_spec(settings, replay.format.name).name
    return Sent(replay.path.name, topic, replay.rows, outcome, problem, replay.table.unfinished_line)


@contextmanager
def _progress(replay: RawReplay) -> Iterator[Callable[[int], None]]:
    """A bar over the file's bytes: how many rows it has is known only at its end."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rows]:,} rows"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task(replay.path.name, total=replay.table.size, rows=0)
        yield lambda rows: progress.update(task, completed=replay.table.position, rows=rows)


def _finish(settings: Settings, done: list[Sent], files: int, started: datetime) -> None:
    """Print the table, leave the report, say what is wrong, and end with the exit code of the run."""
    table = Table(title=f"{COMMAND} into {settings.env}")
    for heading in ("file", "topic"):
        table.add_column(heading, overflow="fold")
    for heading in ("rows", "sent", "acked", "seconds", "acked/s", "latest s", "sent = acked = rows"):
        table.add_column(heading, justify="right")
    for sent in done:
        o = sent.outcome
        counts = (f"{sent.rows:,}", f"{o.offered:,}", f"{o.acked:,}", f"{o.seconds:.1f}", f"{o.acked_per_second:,.0f}")
        table.add_row(sent.file, sent.topic, *counts, f"{o.lateness_seconds_max:.3f}", "yes" if sent.complete else "no")
    out.print(table)
    for sent in done:
        if sent.complete and sent.unfinished_line:
            out.print(f"{sent.file}:{sent.unfinished_line}: has all its columns but no line end; sent as it is", highlight=False)
        out.print(f"ledger: {sent.outcome.ledger}", soft_wrap=True)
    last = done[-1]
    complete = last.complete and len(done) == files
    figures: dict[str, float] = {
        "file_rows": sum(s.rows for s in done),
        "offered_rows": sum(s.outcome.offered for s in done),
        "acked_rows": sum(s.outcome.acked for s in done),
        "sending_seconds": round(sum(s.outcome.seconds for s in done), 3),
    }
    write_report(settings.reports_dir, COMMAND, Verdict.PASS if complete else Verdict.FAIL, figures, started=started)
    if not last.complete:
        complain("\n".join(_what_is_wrong(last)))
    if files > len(done):
        complain(f"Files not begun: {files - len(done)}.")
    if not complete:
        raise typer.Exit(_exit_code(last))


def _what_is_wrong(sent: Sent) -> Iterator[str]:
    o = sent.outcome
    if sent.problem:
        yield sent.problem
    elif o.interrupted:
        yield f"{sent.file}: interrupted"
    else:
        yield f"{sent.file}: of {sent.rows:,} rows {o.offered:,} were sent, {o.acked:,} acked and {o.refused:,} refused; see {o.ledger}"
    yield f"{o.acked:,} rows of {sent.file} are in {sent.topic} and in the ledger; run the command again and they keep their ids."


def _exit_code(sent: Sent) -> int:
    if sent.outcome.unknown:
        return 1
    if sent.problem:
        return 2
    return 130 if sent.outcome.interrupted else 1
