"""The picture of a backfill's season: what was sent by day and by hour of the day, against s(t)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path

import numpy as np

from generator.backfill_state import DayDone
from generator.population_model.season import Season


def plot_season(season: Season, done: Mapping[date, DayDone], title: str, path: Path) -> Path:
    """Write the picture as PNG.

    Every line is divided by its mean, so that what was sent can be compared with s(t). Orders rise against s(t) as the shop's
    customers add up; visits do not.

    Args:
        season: the clock.
        done: what was sent, by day.
        title: over the picture.
        path: file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    days = sorted(done)
    places = np.array([(day - season.first).days for day in days])
    level = season.level.reshape(-1, 24)[places]
    events = np.array([done[day].events_by_hour for day in days], dtype=np.float64)
    orders = np.array([done[day].orders_by_hour for day in days], dtype=np.float64)
    figure = Figure(figsize=(12, 7), layout="constrained")
    by_day, by_hour = figure.subplots(2, 1, height_ratios=(3, 2))
    figure.suptitle(title)
    moments = np.array(days, dtype="datetime64[D]")
    for name, sums, colour in (("events", events, "tab:blue"), ("orders placed", orders, "tab:orange")):
        by_day.plot(moments, _over_mean(sums.sum(axis=1)), label=f"{name} ({int(sums.sum()):,})", color=colour, linewidth=1)
        by_hour.plot(range(24), _over_mean(sums.sum(axis=0)), label=name, color=colour, marker="o", markersize=3)
    by_day.plot(moments, _over_mean(level.mean(axis=1)), label="s(t)", color="black", linewidth=1.2, linestyle="--")
    by_hour.plot(range(24), _over_mean(level.mean(axis=0)), label="s(t)", color="black", linestyle="--")
    by_day.set(ylabel="times its mean", title="by day")
    by_hour.set(ylabel="times its mean", xlabel="hour of the day, UTC", title="by hour of the day", xticks=range(0, 24, 2))
    for axes in (by_day, by_hour):
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)  # the canvas without a screen, which the figure then saves by
    figure.savefig(path, format="png")
    return path


def _over_mean(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    mean = values.mean()
    return values / mean if mean > 0 else values
