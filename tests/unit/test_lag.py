"""Lag from offsets and record times."""

from __future__ import annotations

from crm_resources.kafka import lag_of

NOW = 1_000.0


def test_lag_is_what_lies_between_the_committed_offset_and_the_end() -> None:
    ends = {("t", 0): (0, 100), ("t", 1): (10, 50), ("u", 0): (0, 0)}

    lag = lag_of("g", ends, {("t", 0): 70, ("t", 1): 50}, {("t", 0): 940.0}, NOW)

    assert [(p.records, p.seconds) for p in lag.partitions] == [(30, 60.0), (0, 0.0), (0, 0.0)]
    assert (lag.records, lag.seconds, lag.lost) == (30, 60.0, 0)


def test_a_group_that_never_committed_has_everything_before_it() -> None:
    lag = lag_of("g", {("t", 0): (10, 50)}, {}, {("t", 0): 400.0}, NOW)

    assert (lag.records, lag.seconds, lag.lost) == (40, 600.0, 0)


def test_what_retention_took_before_the_group_had_it_is_lost_and_counted() -> None:
    lag = lag_of("g", {("t", 0): (30, 50)}, {("t", 0): 10}, {("t", 0): 999.0}, NOW)

    assert (lag.records, lag.lost) == (20, 20)


def test_a_topic_made_anew_waits_as_a_whole() -> None:
    lag = lag_of("g", {("t", 0): (0, 5)}, {("t", 0): 900}, {("t", 0): 990.0}, NOW)

    assert (lag.records, lag.seconds, lag.lost) == (5, 10.0, 0)


def test_clocks_that_differ_give_no_negative_age() -> None:
    assert lag_of("g", {("t", 0): (0, 1)}, {}, {("t", 0): NOW + 5}, NOW).seconds == 0.0
