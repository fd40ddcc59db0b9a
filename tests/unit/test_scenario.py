"""Scenario files: what comes along is as promised, and what is wrong is named with file, line, key and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from crm_resources.ordered_defects import Defect
from generator.cli import app
from generator.errors import BadInputError
from generator.scenario import BackfillScenario, Daily, Defects, LiveScenario
from generator.scenario_file import load_scenario, read_scenario, scenario_names
from generator.schedule import Schedule

GOOD = """
seed: 9
mix: {events: 1}
defects: {duplicate: 0.1}
phases:
  - {name: first, duration: 90s, rate: 10}
  - name: second
    duration: 1.5m
    rate: {from: 10, to: 20}
    mix: {events: 0.5, orders: 0.5}
    defects: {late: {share: 0.1, median: 1h, at_most: 1d}}
    hot_key_share: 0.8
    arrivals: poisson
  - {name: third, duration: 2, rate: {daily: {low: 1, high: 2}}}
"""


def complaint(text: str) -> str:
    with pytest.raises(BadInputError) as caught:
        read_scenario("shop.yml", text)
    return str(caught.value)


def live(name: str) -> LiveScenario:
    scenario = load_scenario(name)
    assert isinstance(scenario, LiveScenario)
    return scenario


def test_a_phase_says_what_differs_from_the_scenario() -> None:
    scenario = read_scenario("shop.yml", GOOD)
    assert isinstance(scenario, LiveScenario)
    first, second, third = scenario.phases
    assert (first.duration, second.duration, third.duration, scenario.seconds) == (90, 90, 2, 182)
    assert (scenario.mix_of(first).events, scenario.mix_of(second).orders) == (1, 0.5)
    assert (scenario.hot_key_share_of(first), scenario.hot_key_share_of(second)) == (0, 0.8)
    assert scenario.defects_of(first).shares().by_name["duplicate"] == 0.1
    shares = scenario.defects_of(second).shares()
    assert (shares.duplicate, shares.late, shares.late_delays.median_seconds, shares.late_delays.at_most_seconds) == (0, 0.1, 3600, 86400)


def test_the_scenarios_that_come_along() -> None:
    assert scenario_names() == ("backfill", "ladder", "normal", "soak", "spike")
    backfill = load_scenario("backfill")
    assert isinstance(backfill, BackfillScenario)
    assert (backfill.customers, backfill.days, backfill.truth.bgnbd) == (20_000, 365, True)
    normal = live("normal").phases[0]
    assert isinstance(normal.rate, Daily)
    assert (min(normal.rate.daily.hourly), max(normal.rate.daily.hourly)) == (10, 100)
    assert [p.rate for p in live("ladder").phases] == [10, 100, 1_000, 3_000, 10_000]
    assert all(share > 0 for share in live("soak").defects.shares().by_name.values())
    assert not any(live(name).truth.bgnbd for name in ("ladder", "normal", "soak", "spike"))


def test_the_spike_reaches_3000_a_second_within_five_seconds_holds_and_falls() -> None:
    scenario = live("spike")
    schedule = Schedule(scenario)
    names = [p.name for p in scenario.phases]
    start = sum(p.duration for p in scenario.phases[: names.index("rise")])
    assert schedule.rate_at(start - 0.001) <= 100
    assert schedule.rate_at(start + 5) >= 3_000
    assert all(schedule.rate_at(start + 5 + s) >= 3_000 for s in range(60))
    assert schedule.rate_at(schedule.seconds) == 100


def test_the_command_checks_a_scenario_and_refuses_what_does_not_apply() -> None:
    live_one = CliRunner().invoke(app, ["run", "spike", "--check-only", "--for", "35s"])
    assert (live_one.exit_code, "2 phases, 35 s, about 12,000 records; truth: bgnbd false" in live_one.output) == (0, True)
    history = CliRunner().invoke(app, ["run", "backfill", "--check-only"])
    assert (history.exit_code, "20,000 customers over 365 days; truth: bgnbd true" in history.output) == (0, True)
    assert CliRunner().invoke(app, ["run", "backfill", "--check-only", "--for", "1m"]).exit_code == 2
    assert CliRunner().invoke(app, ["run", "spike", "--check-only", "--for", "soon"]).exit_code == 2


def test_every_defect_can_be_ordered() -> None:
    assert set(Defects.model_fields) == {d.value for d in Defect}


PHASE = "phases:\n  - {name: a, duration: 1s, rate: 1}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"seeed: 1\n{PHASE}", "shop.yml:1: seeed: unknown key; allowed: kind, description, seed, customers"),
        ("phases:\n  - name: a\n    duration: 1s\n    rate: -5\n", "shop.yml:4: phases[1].rate: must be 0 or more, not -5"),
        ("phases:\n  - name: a\n    rate: 5\n", "shop.yml:2: phases[1].duration: is missing; allowed: 500ms, 90s, 5m, 2h, 1d"),
        ("phases:\n  - {name: a, duration: 1w, rate: 1}\n", "shop.yml:2: phases[1].duration: must be a duration such as 500ms, 90s"),
        (f"{PHASE}hot_key_share: 1.5\n", "shop.yml:3: hot_key_share: must be 1 or less, not 1.5"),
        (f"{PHASE}defects:\n  duplicate: 2\n", "shop.yml:4: defects.duplicate: must be 1 or less, not 2"),
        (f"{PHASE}defects:\n  duplicate: .6\n  dst: .6\n", "shop.yml:3: defects: the shares must not exceed 1 together; they are 1.2"),
        (f"{PHASE}defects:\n  dup: 0.1\n", "shop.yml:4: defects.dup: unknown key; allowed: duplicate, conflicting_duplicate, late"),
        (f"{PHASE}mix: {{events: 0.5}}\n", "shop.yml:3: mix: the shares must add up to 1, not 0.5"),
        (f"{PHASE}arrivals: odd\n", "shop.yml:3: arrivals: 'odd' is not allowed; allowed: 'even', 'poisson'"),
        (f"{PHASE}kind: lively\n", "shop.yml:3: kind: 'lively' is not allowed; allowed: live, backfill"),
        (
            "phases:\n  - name: a\n    duration: 1s\n    rate: {from: 1, too: 2}\n",
            "shop.yml:4: phases[1].rate.too: unknown key; allowed: from, to",
        ),
        ("phases:\n  - {name: a, duration: 1s, rate: {daily: {low: 3, high: 1}}}\n", "low (3) must not exceed high (1)"),
        ("phases:\n  - {name: a, duration: 1s, rate: .inf}\n", "shop.yml:2: phases[1].rate: must be"),
        (f"{PHASE}seed: 1.5\n", "shop.yml:3: seed: must be a whole number, not 1.5"),
        (f"{PHASE}seed: 1\nseed: 2\n", "shop.yml:4: seed: is given twice; first in line 3"),
        (f"{PHASE}truth: {{bgnbd: true}}\n", "truth.bgnbd must be false"),
        ("seed: 1\n", "shop.yml:1: phases: is missing; a list of at least one phase"),
        ("phases: []\n", "shop.yml:1: phases: must have at least 1 entries, not 0"),
        (f"{PHASE}  - {{name: a, duration: 1s, rate: 1}}\n", "two phases have the name 'a'"),
        ("phases: [\n", "shop.yml:2: is no YAML"),
        ("", "shop.yml:1: must be a mapping"),
        ("kind: backfill\ncustomers: 0\n", "shop.yml:2: customers: must be 1 or more, not 0"),
    ],
)
def test_what_is_wrong_is_named(text: str, expected: str) -> None:
    assert expected in complaint(text)


def test_all_faults_are_told_at_once_and_only_they() -> None:
    lines = complaint("phases:\n  - {name: a, duration: 1s, rate: -1}\n  - {name: b, rate: 1}\nseeds: 1\n").splitlines()
    assert len(lines) == 4
    assert lines[-1] == "Nothing was sent."


def test_a_scenario_that_does_not_exist_is_told_with_those_that_do(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"cannot be read \(No such file or directory\); .* ladder, normal, soak, spike"):
        load_scenario(str(tmp_path / "none.yml"))
    (tmp_path / "latin.yml").write_bytes(b"description: caf\xe9\n")
    with pytest.raises(BadInputError, match="is not UTF-8 text"):
        load_scenario(str(tmp_path / "latin.yml"))
