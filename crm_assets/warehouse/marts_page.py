"""`make marts-page`: what the marts say of the customers, as a page with plots: segments, movements, cohorts, quality of the models.

Belongs here: reading the marts, and drawing what was read. Not here: any figure that the marts do not hold (but those of the evaluation,
which `crm_assets.warehouse.models` computes).
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crm_assets.warehouse.plotted_page import html_page, image, png_of
from crm_resources import warehouse
from crm_resources.command_end import failed
from crm_resources.settings import Settings, load_settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from crm_assets.warehouse.models.evaluation_result import Evaluation

NO_SCORE = "no score"
MOVEMENT_DAYS = 30


@dataclass(frozen=True)
class Picture:
    """One section of the page.

    Args:
        name: of its file.
        title: heading.
        text: what it shows, a sentence or two.
        png: the plot; none where there was nothing to draw.
    """

    name: str
    title: str
    text: str
    png: bytes | None = None


@dataclass(frozen=True)
class Marts:
    """What the page shows.

    Args:
        as_of: date the marts show, inclusive.
        since: earlier date of the movements.
        sizes: segment, its rank, customers as booked, customers restated; the best segment first.
        movements: segment at `since` and at `as_of` (null: no score), customers; restated.
        cohorts: month of the first purchase, months since then, share of the cohort that bought, whether that month is over.
    """

    as_of: date
    since: date
    sizes: Sequence[tuple[str, int, int, int]]
    movements: Sequence[tuple[str | None, str | None, int]]
    cohorts: Sequence[tuple[date, int, float, bool]]


class NothingToShow(RuntimeError):
    """The data set has no scored customers yet."""


def read_marts(settings: Settings, movement_days: int = MOVEMENT_DAYS) -> Marts:
    """Read what the page shows.

    Args:
        settings: data set.
        movement_days: between the two dates of the movements.

    Raises:
        NothingToShow: no customer has a segment.
        crm_resources.warehouse.WarehouseError: no connection.
    """
    sizes = warehouse.rows_if_prepared(
        settings,
        "select segment, min(segment_rank), count(*) filter (where basis = 'booked'), count(*) filter (where basis = 'restated') "
        "from marts.rfm_segments where segment is not null group by segment order by 2",
    )
    if not sizes:
        raise NothingToShow(
            f"no customer of data set {settings.env} has a segment yet; send orders and wait for the marts, or name another CRM_ENV"
        )
    ((as_of,),) = warehouse.fetch_rows(settings, "select max(as_of) from marts.rfm_segments")
    since = as_of - timedelta(days=movement_days)
    movements = warehouse.fetch_rows(
        settings,
        "select from_segment, to_segment, sum(customers)::bigint from marts.segment_migration($1::date, $2::date, 'restated') "
        "group by 1, 2",
        (since, as_of),
    )
    cohorts = warehouse.fetch_rows(
        settings, "select cohort_month, month_number, retention_booked, is_whole_month from marts.customer_cohorts order by 1, 2"
    )
    return Marts(as_of, since, *([tuple(row) for row in found] for found in (sizes, movements, cohorts)))


def pictures(marts: Marts) -> list[Picture]:
    """The plots of the marts; pure."""
    moved = sum(count for before, after, count in marts.movements if before != after)
    return [
        Picture(
            "segments",
            "Segment sizes",
            f"Customers by RFM segment as of {marts.as_of}, as booked and restated for cancellations.",
            png_of(_sizes(marts)),
        ),
        Picture(
            "movements",
            "Migration",
            f"From the segment of {marts.since} (rows) to that of {marts.as_of} (columns), restated: {moved:,} customers moved.",
            png_of(_movements(marts)),
        ),
        Picture(
            "cohorts",
            "Cohort retention",
            "Share of the customers of a month who bought again, by months since their first purchase, as booked. "
            "A month that is not over is hatched.",
            png_of(_cohorts(marts)),
        ),
    ]


def model_pictures(settings: Settings, as_of: date) -> list[Picture]:
    """Calibration and lift of the purchase models on the last hold-out, or why there is none."""
    from crm_assets.warehouse.models.evaluation import HORIZON_DAYS
    from crm_assets.warehouse.models.fitting import FitError
    from crm_assets.warehouse.models.page import plot
    from crm_assets.warehouse.models.refit import evaluate_past

    title = "How good the purchase models are"
    found: dict[str, Evaluation]
    try:
        found = evaluate_past(settings, as_of - timedelta(days=HORIZON_DAYS), HORIZON_DAYS, shown=as_of)
    except (FitError, ValueError) as error:
        return [Picture("models", title, f"Not judged: {error}.")]
    return [
        Picture(
            f"model-{name}",
            f"{title}: {name}",
            f"As of {e.as_of}, {e.horizon_days} days ahead, by {e.method}: {e.calibration_reason}. AUC above recency alone "
            f"{e.auc_above_recency.value:+.3f} ({e.auc_above_recency.low:+.3f} to {e.auc_above_recency.high:+.3f}).",
            plot(e, name),
        )
        for name, e in found.items()
    ]


def page(title: str, sections: Sequence[Picture]) -> str:
    """One HTML page that needs nothing besides itself."""
    parts = [f"<h2>{html.escape(s.title)}</h2><p>{html.escape(s.text)}</p>{image(s.title, s.png) if s.png else ''}" for s in sections]
    return html_page(title, "".join(parts))


def markdown(title: str, sections: Sequence[Picture]) -> str:
    """The same as markdown beside its pictures."""
    parts = [f"# {title}"]
    for section in sections:
        parts += [f"## {section.title}", section.text, *([f"![{section.title}]({section.name}.png)"] if section.png else [])]
    return "\n\n".join(parts) + "\n"


def write_page(folder: Path, title: str, sections: Sequence[Picture]) -> Path:
    """Write `index.html`, `README.md` and the pictures; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    for section in sections:
        if section.png:
            (folder / f"{section.name}.png").write_bytes(section.png)
    (folder / "README.md").write_text(markdown(title, sections))
    path = folder / "index.html"
    path.write_text(page(title, sections))
    return path


def _sizes(marts: Marts) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    places = range(len(marts.sizes))
    for shift, (column, name) in ((-0.2, (2, "as booked")), (0.2, (3, "restated"))):
        bars = axes.barh([place + shift for place in places], [row[column] for row in marts.sizes], height=0.38, label=name)
        axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
    axes.set_yticks(list(places), [row[0] for row in marts.sizes])
    axes.invert_yaxis()
    axes.set_xlabel("customers")
    axes.legend()
    return figure


def _movements(marts: Marts) -> Figure:
    import numpy as np
    from matplotlib.figure import Figure

    names = [row[0] for row in marts.sizes]
    names += sorted({s for before, after, _ in marts.movements for s in (before, after) if s is not None and s not in names})
    labels = [*names, NO_SCORE]
    counts = np.zeros((len(labels), len(labels)))
    for before, after, count in marts.movements:
        counts[labels.index(before or NO_SCORE), labels.index(after or NO_SCORE)] += count
    figure = Figure(figsize=(9, 7), layout="constrained")
    axes = figure.subplots()
    of_all = counts.sum(axis=1, keepdims=True)
    axes.imshow(np.divide(counts, of_all, out=np.zeros_like(counts), where=of_all > 0), cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(counts), strict=True):
        dark = counts[row, column] > of_all[row, 0] / 2
        axes.text(column, row, f"{counts[row, column]:,.0f}", ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel=f"{marts.as_of}", ylabel=f"{marts.since}", title="customers; shade: share of the row")
    return figure


def _cohorts(marts: Marts) -> Figure:
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    months = sorted({month for month, _, _, _ in marts.cohorts})
    width = max((number for _, number, _, _ in marts.cohorts), default=0) + 1
    shares = np.full((len(months), width), np.nan)
    figure = Figure(figsize=(max(6, 0.7 * width), max(3, 0.4 * len(months) + 1.5)), layout="constrained")
    axes = figure.subplots()
    for month, number, share, whole in marts.cohorts:
        shares[months.index(month), number] = share
        if not whole:
            axes.add_patch(
                Rectangle((number - 0.5, months.index(month) - 0.5), 1, 1, fill=False, hatch="///", edgecolor="grey", linewidth=0)
            )
    again = shares[:, 1:]
    most = float(np.nanmax(again)) if np.isfinite(again).any() else 1.0
    axes.imshow(shares, cmap="Greens", vmin=0, vmax=most, aspect="auto")
    for row, column in zip(*np.nonzero(np.isfinite(shares)), strict=True):
        color = "white" if shares[row, column] > 0.7 * most else "black"
        axes.text(column, row, f"{shares[row, column]:.0%}", ha="center", va="center", fontsize=7, color=color)
    axes.set_xticks(range(width))
    axes.set_yticks(range(len(months)), [f"{month:%Y-%m}" for month in months])
    axes.set(xlabel="months since the first purchase", ylabel="month of the first purchase")
    return figure


def main() -> None:
    """Command line."""
    from rich.console import Console
    from rich.table import Table

    from crm_resources.report import Verdict, write_report

    def run(
        folder: Annotated[Path | None, typer.Option(help="Where to write it; `marts-<data set>` in the reports folder by default.")] = None,
        days: Annotated[int, typer.Option(min=1, help="Days between the two dates of the movements.")] = MOVEMENT_DAYS,
    ) -> None:
        """Write a page with plots of what the marts of the data set CRM_ENV say."""
        settings, started = load_settings(), datetime.now(UTC)
        try:
            marts = read_marts(settings, days)
            sections = [*pictures(marts), *model_pictures(settings, marts.as_of)]
        except (NothingToShow, warehouse.WarehouseError) as error:
            raise failed(error, 2) from error
        path = write_page(folder or settings.reports_dir / f"marts-{settings.env}", f"Customers of {settings.env}", sections)
        table = Table("segment", "as booked", "restated", title=f"customers as of {marts.as_of}", title_justify="left")
        for segment, _, booked, restated in marts.sizes:
            table.add_row(segment, f"{booked:,}", f"{restated:,}")
        console = Console()
        console.print(table)
        console.print(f"page: {path}", soft_wrap=True, highlight=False)
        figures = {
            "customers_booked": sum(row[2] for row in marts.sizes),
            "customers_restated": sum(row[3] for row in marts.sizes),
            "moved_customers": sum(count for before, after, count in marts.movements if before != after),
            "cohorts": len({month for month, _, _, _ in marts.cohorts}),
        }
        write_report(settings.reports_dir, "marts-page", Verdict.PASS, {k: float(v) for k, v in figures.items()}, started=started)

    typer.run(run)


if __name__ == "__main__":
    main()
