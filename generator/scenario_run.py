"""Runs a live scenario: builds its shop and schedule, introduces everybody, and sends the traffic at its times.

Belongs here: how the parts are put together. Not here: options, progress and tables (`scenario_cli`), or what the parts do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from crm_resources.kafka import DELIVERY_SECONDS
from crm_resources.settings import Settings
from generator.delivery import Outcome, WhenFull, deliver
from generator.meter import Meter, Second, Stretch
from generator.scenario import LiveScenario
from generator.schedule import Schedule, Scheduled
from generator.synthetic import Shop, ShopOptions
from generator.traffic import Traffic


@dataclass(frozen=True)
class RunOptions:
    """How a scenario is run.

    Args:
        start: time of the scenario's clock at the beginning, aware; with it the same seed gives the same bytes. By default such that
            the scenario's clock shows the current time at the end, and at the beginning too where it runs as fast as the wall clock.
        limit_seconds: end after so many seconds of the wall clock; None runs all phases.
        when_full: what happens to records for which the producer has no room.
        delivery_timeout_seconds: how long a record is tried before it is given up.
        wait_seconds: how long an unreachable broker is waited for at the start.
    """

    start: datetime | None = None
    limit_seconds: float | None = None
    when_full: WhenFull = WhenFull.WAIT
    delivery_timeout_seconds: float = DELIVERY_SECONDS
    wait_seconds: float = 20


class ScenarioRun:
    """One run of a live scenario.

    Args:
        settings: where Kafka and the ledger are.
        name: name of the scenario; the run's id begins with it.
        scenario: what to run.
        options: how.
        on_second: called with each second of the traffic that is over.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        scenario: LiveScenario,
        options: RunOptions,
        on_second: Callable[[Second], None] | None = None,
    ) -> None:
        self.settings = settings
        self.scenario = scenario
        self.options = options
        length = min(scenario.seconds, options.limit_seconds or scenario.seconds)
        ahead = timedelta(seconds=length * max(0.0, scenario.clock_speed_up - 1))
        self.start = options.start or (datetime.now(UTC) - ahead).replace(microsecond=0)
        self.run_id = f"{name}-{scenario.seed}-{self.start:%Y%m%dT%H%M%S}"
        sizes = ShopOptions(seed=scenario.seed, customers=scenario.customers, products=scenario.products)
        self.shop = Shop(sizes, self.start, self.run_id)
        midnight = self.start.astimezone(ZoneInfo(settings.business_timezone))
        second_of_day = midnight.hour * 3_600 + midnight.minute * 60 + midnight.second
        self.schedule = Schedule(scenario, second_of_day, options.limit_seconds)
        self.traffic = Traffic(scenario, self.schedule, self.shop, self.start)
        self.meter = Meter(self.stretches, on_second)

    @property
    def stretches(self) -> tuple[Stretch, ...]:
        """The phases by the wall clock, as far as they are run."""
        found = []
        begin = 0.0
        for phase in self.scenario.phases:
            end = min(begin + phase.duration, self.schedule.seconds)
            if end > begin:
                found.append(Stretch(phase.name, begin, end))
            begin = end
        return tuple(found)

    def introduce(self, stop: Callable[[], bool]) -> Outcome:
        """Send every product and profile once, as fast as possible."""
        return deliver(
            self.settings,
            self.run_id,
            self.traffic.preamble(),
            stop=stop,
            delivery_timeout_seconds=self.options.delivery_timeout_seconds,
            wait_seconds=self.options.wait_seconds,
        )

    def send(self, stop: Callable[[], bool], progress: Callable[[int], None] | None = None) -> Outcome:
        """Send the traffic at its times; see `delivery.deliver` for what can go wrong."""
        return deliver(
            self.settings,
            self.run_id,
            self.traffic.records(),
            pace=Scheduled(self.schedule.moments()),
            stop=stop,
            progress=progress,
            delivery_timeout_seconds=self.options.delivery_timeout_seconds,
            wait_seconds=self.options.wait_seconds,
            when_full=self.options.when_full,
            meter=self.meter,
        )
