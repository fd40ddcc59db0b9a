"""Waits end when something has ended or nothing moves any more, not because a clock was set for another machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from crm_resources.settings import Settings, load_settings
from crm_resources.stream_launcher import StreamError, StreamState, StreamStatus, SupervisedStream
from crm_resources.waiting import CPU_LIMIT_SECONDS, CPU_STEP_SECONDS, MOST_PROCESSES, PATIENCE_SECONDS, ProcessLife, cpu_seconds, wait_for


class NothingCame(RuntimeError):
    pass


@dataclass
class Clock:
    """Goes on only while somebody sleeps."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def wait(clock: Clock, condition: Callable[[], bool], sign: Callable[[], Hashable | None]) -> bool:
    return wait_for(condition, sign, NothingCame, every_seconds=1, clock=clock, sleep=clock.sleep)


def test_a_wait_goes_on_for_days_while_there_are_signs_of_life(clock: Clock) -> None:
    days = 3 * 86_400.0
    assert wait(clock, lambda: clock.now > days, lambda: int(clock.now / (PATIENCE_SECONDS - 1)))
    assert clock.now == pytest.approx(days, rel=0.001)


def test_a_wait_ends_once_nothing_has_moved_for_the_patience(clock: Clock) -> None:
    with pytest.raises(NothingCame, match="nothing has moved for 120 s"):
        wait(clock, lambda: False, lambda: min(clock.now, 1000))

    assert clock.now == pytest.approx(1000 + PATIENCE_SECONDS, abs=2)


def test_a_wait_ends_at_once_when_what_it_waits_for_has_ended(clock: Clock) -> None:
    with pytest.raises(NothingCame, match="it has ended"):
        wait(clock, lambda: False, lambda: None if clock.now > 7 else 1)

    assert clock.now < 10


def test_what_ended_because_it_was_done_is_no_failure(clock: Clock) -> None:
    looks = iter([False, True])
    assert wait(clock, lambda: next(looks), lambda: None)


def test_what_is_there_already_is_not_waited_for(clock: Clock) -> None:
    assert wait_for(lambda: "there", lambda: None, NothingCame, clock=clock, sleep=clock.sleep) == "there"
    assert clock.now == 0


def test_cpu_time_is_a_sign_of_life_until_a_process_has_used_too_much_of_it() -> None:
    used = 1000.0  # an adopted process had a life before
    life = ProcessLife(lambda _pid: used)
    signs = set()
    while used < 1000 + 3 * CPU_LIMIT_SECONDS:
        signs.add(life(1))
        used += 1

    assert len(signs) == CPU_LIMIT_SECONDS / CPU_STEP_SECONDS + 1
    assert life(1) == life(1)


def test_a_program_that_ends_again_and_again_has_no_life() -> None:
    life = ProcessLife(lambda _pid: 0.0)
    for pid in range(1, MOST_PROCESSES + 1):
        assert life(pid) is not None
        assert life(None) is not None, "between two processes"

    assert life(MOST_PROCESSES + 1) is None


@pytest.fixture
def busy_child() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    yield child
    child.kill()
    child.wait()


def test_the_cpu_time_of_a_process_has_that_of_its_children(busy_child: subprocess.Popen[bytes]) -> None:
    before = cpu_seconds(os.getpid())
    assert before is not None
    while (cpu_seconds(busy_child.pid) or 0.0) < 0.2:
        pass
    after = cpu_seconds(os.getpid())
    assert after is not None
    assert after - before >= 0.2


def test_a_process_that_is_gone_has_no_cpu_time(busy_child: subprocess.Popen[bytes]) -> None:
    busy_child.kill()
    busy_child.wait()
    assert cpu_seconds(busy_child.pid) is None


class Stream(SupervisedStream):
    """The real launcher; in place of a supervisor, states by time."""

    def __init__(self, settings: Settings, clock: Clock, cpu: Callable[[int], float | None]) -> None:
        super().__init__(settings, clock=clock, sleep=clock.sleep, cpu=cpu)
        self.state: Callable[[], tuple[StreamState, int | None]] = lambda: (StreamState.RUNNING, 1)

    def status(self) -> StreamStatus:
        state, pid = self.state()
        return StreamStatus(state, pid, None, 0, Path("stream.log"))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"CRM_HOME": str(tmp_path)})


def test_a_driver_that_is_starved_is_waited_for(settings: Settings, clock: Clock) -> None:
    starved = Stream(settings, clock, lambda _pid: 0.06 * clock.now)  # a core for 16 others as well

    status = starved.verify(lambda _status: clock.now > 2000, lambda: None)

    assert status.state is StreamState.RUNNING


def test_a_driver_that_only_idles_is_given_up_with_its_state_and_its_log(settings: Settings, clock: Clock) -> None:
    hangs = Stream(settings, clock, lambda _pid: 40 + 0.01 * clock.now)

    with pytest.raises(StreamError) as error:
        hangs.verify(lambda _status: False, lambda: None)

    assert str(error.value) == ("the stream did not report that it works: nothing has moved for 120 s (it is running); see stream.log")


def test_a_driver_that_works_in_a_circle_is_given_up(settings: Settings, clock: Clock) -> None:
    with pytest.raises(StreamError, match="nothing has moved"):
        Stream(settings, clock, lambda _pid: 2 * clock.now).verify(lambda _status: False, lambda: None)

    assert clock.now < CPU_LIMIT_SECONDS / 2 + PATIENCE_SECONDS + 10


def test_what_a_driver_has_reached_is_a_sign_of_life(settings: Settings, clock: Clock) -> None:
    idle = Stream(settings, clock, lambda _pid: 0.0)
    assert idle.verify(lambda _status: clock.now > 500, lambda: int(clock.now / 100))


def test_a_driver_that_ends_again_and_again_is_given_up_however_slowly(settings: Settings, clock: Clock) -> None:
    restarts = Stream(settings, clock, lambda _pid: 0.0)
    restarts.state = lambda: (StreamState.RUNNING, 1 + int(clock.now / 100))

    with pytest.raises(StreamError, match="it has ended"):
        restarts.verify(lambda _status: False, lambda: None)

    assert clock.now <= 100 * MOST_PROCESSES + 1


def test_a_driver_that_has_failed_for_good_is_told_at_once(settings: Settings, clock: Clock) -> None:
    failed = Stream(settings, clock, lambda _pid: 0.0)
    failed.state = lambda: (StreamState.FAILED, None)

    with pytest.raises(StreamError, match=r"it has ended \(it is failed\)"):
        failed.verify(lambda _status: False, lambda: None)

    assert failed.signs_of_life()() is None
    assert clock.now == 0
