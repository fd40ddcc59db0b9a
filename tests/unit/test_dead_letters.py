"""Which dead letters are meant, what a replay may be asked for, and that a wrong wish is refused before anything is asked."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa  # noqa: TID253 -- the dead letters are an Arrow table
import pytest

from crm_assets.streaming.dead_letters import WHAT_TO_DO, Selection, selected, summary_by_reason
from crm_assets.streaming.replay_job import replay_dead_letters
from crm_assets.streaming.replay_request import ReplayInvalid, ask_for_replay, replay_arguments
from crm_assets.streaming.requests import Answer, answer, open_requests
from crm_resources.contracts import Reason
from crm_resources.dagster_resources import SettingsResource
from crm_resources.settings import Settings, load_settings

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def letter(offset: int, reason: str, hours: int = 0, event_id: str | None = None) -> dict[str, Any]:
    at = NOON + timedelta(hours=hours)
    place = {"kafka_topic": "demo.orders", "kafka_partition": 0, "kafka_offset": offset}
    return {**place, "event_id": event_id, "reason": reason, "detail": f"at {offset}", "first_failed_at": at, "failed_at": at}


LETTERS = pa.Table.from_pylist(
    [letter(0, "corrupt_json"), letter(1, "future_event", 1, "a"), letter(2, "future_event", 2, "b"), letter(3, "null_value", 3)],
    pa.schema(
        [
            ("kafka_topic", pa.string()),
            ("kafka_partition", pa.int32()),
            ("kafka_offset", pa.int64()),
            ("event_id", pa.string()),
            ("reason", pa.string()),
            ("detail", pa.string()),
            ("first_failed_at", pa.timestamp("us", tz="UTC")),
            ("failed_at", pa.timestamp("us", tz="UTC")),
        ]
    ),
)


@pytest.mark.parametrize(
    ("selection", "offsets"),
    [
        (Selection(), [0, 1, 2, 3]),
        (Selection(reasons=("future_event", "null_value")), [1, 2, 3]),
        (Selection(failed_from=NOON + timedelta(hours=1), failed_before=NOON + timedelta(hours=3)), [1, 2]),
        (Selection(event_ids=("b", "x")), [2]),
        (Selection(coordinates=(("demo.orders", 0, 3), ("demo.orders", 1, 2))), [3]),
        (Selection(reasons=("null_value",), event_ids=("a",)), []),
    ],
)
def test_every_restriction_of_a_selection_holds(selection: Selection, offsets: list[int]) -> None:
    assert sorted(selected(LETTERS, selection)["kafka_offset"].to_pylist()) == offsets


def test_the_summary_tells_count_oldest_example_and_what_to_do() -> None:
    first, *others = summary_by_reason(LETTERS)
    assert (first.reason, first.count, first.oldest) == ("future_event", 2, NOON + timedelta(hours=1))
    assert (first.example, first.detail) == ("demo.orders[0]@1", "at 1")
    assert first.what_to_do == WHAT_TO_DO[Reason.FUTURE_EVENT]
    assert {o.reason for o in others} == {"corrupt_json", "null_value"}


def test_there_is_something_to_do_for_every_reason() -> None:
    assert set(WHAT_TO_DO) == set(Reason)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"reasons": ["typo"]}, "reasons.0: unknown reason; one of null_value, "),
        ({"failed_from": "yesterday"}, "failed_from: "),
        ({"failed_before": "2026-03-01T00:00:00"}, "failed_before: "),
        ({"failed_from": "2026-03-02T00:00:00Z", "failed_before": "2026-03-01T00:00:00Z"}, "failed_from is not before failed_before"),
        ({"coordinates": ["demo.orders/3/17"]}, "coordinates.0: not a coordinate; written like demo.orders[3]@1234"),
        ({"records_per_second": 0}, "records_per_second: "),
        ({"records_per_second": float("inf")}, "records_per_second: "),
        ({"event_ids": [""]}, "event_ids.0: "),
        ({"reason": "null_value"}, "reason: "),
    ],
)
def test_a_wrong_argument_is_named(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ReplayInvalid) as error:
        replay_arguments(given)
    assert named in str(error.value)


def test_a_selection_never_reaches_beyond_the_time_of_asking() -> None:
    late = replay_arguments({"failed_before": "2030-01-01T00:00:00Z", "coordinates": ["demo.orders[-1]@17"]})
    assert late.selection(NOON) == Selection(failed_before=NOON, coordinates=(("demo.orders", -1, 17),))
    assert replay_arguments({"failed_before": "2020-01-01T00:00:00Z"}).selection(NOON).failed_before == datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("CRM_HOME", str(tmp_path))
    settings = load_settings()
    Path(settings.lake_root).mkdir(parents=True)
    return settings


def test_an_unanswered_replay_of_the_same_arguments_is_adopted(lake: Settings) -> None:
    arguments = replay_arguments({"reasons": ["null_value"]})
    assert ask_for_replay(lake, "first", arguments) == "first"
    assert ask_for_replay(lake, "second", arguments) == "first"
    assert ask_for_replay(lake, "third", replay_arguments({})) == "third"
    answer(lake, "first", Answer(True, None, {}, "", ""))
    assert ask_for_replay(lake, "fourth", arguments) == "fourth"


class Launched(dg.ConfigurableResource["Launched"]):
    """A stream that runs or does not, and may answer a request while somebody looks whether it runs."""

    state: str = "running"
    request: str = ""
    given: str = ""

    def launcher(self, settings: Settings) -> _Stream:
        return _Stream(settings, self.state, self.request, self.given)


@dataclass
class _Stream:
    settings: Settings
    state: str
    request: str
    given: str

    def status(self) -> _Stream:
        if self.request:
            answer(self.settings, self.request, Answer(**json.loads(self.given)))
        return self


def run(config: dict[str, Any], launched: Launched) -> dg.ExecuteInProcessResult:
    return replay_dead_letters.execute_in_process(
        run_config={"ops": {"ask_driver_to_replay": {"config": {"timeout_seconds": 20, **config}}}},
        resources={"settings": SettingsResource(), "stream_launcher": launched},
        raise_on_error=False,
    )


def failure(result: dg.ExecuteInProcessResult) -> str:
    (event,) = [e for e in result.all_events if e.event_type_value == "STEP_FAILURE"]
    data = event.step_failure_data
    return str(data.user_failure_data.description if data.user_failure_data else data.error)


def test_the_job_refuses_a_wrong_config_before_it_asks(lake: Settings) -> None:
    result = run({"reasons": ["typo"]}, Launched())
    assert "reasons.0: unknown reason" in failure(result)
    assert open_requests(lake) == []


def test_the_job_says_that_the_stream_does_not_run_and_leaves_the_request(lake: Settings) -> None:
    result = run({"reasons": ["null_value"]}, Launched(state="stopped"))
    assert "does not run" in failure(result)
    (left,) = open_requests(lake)
    assert left.arguments["dry_run"] is True


def test_the_job_adopts_the_request_of_a_killed_run_and_reports_its_answer(lake: Settings) -> None:
    ask_for_replay(lake, "killed", replay_arguments({"reasons": ["null_value"]}))
    figures = {"selected": 3, "outcomes": {"null_value": {"dead_letter": 3}}, "totals": {"dead_letter": 3}}
    given = Answer(True, None, figures, NOON.isoformat(), (NOON + timedelta(seconds=4)).isoformat())
    result = run({"reasons": ["null_value"]}, Launched(request="killed", given=json.dumps(asdict(given))))
    assert result.success
    (output,) = [e for e in result.all_events if e.event_type_value == "STEP_OUTPUT"]
    assert output.step_output_data.metadata["selected_rows"].value == 3
    assert output.step_output_data.metadata["seconds"].value == 4.0
    assert open_requests(lake) == []


def test_the_job_fails_with_the_answers_error(lake: Settings) -> None:
    ask_for_replay(lake, "asked", replay_arguments({}))
    given = Answer(False, "BooksOpen: why", {}, NOON.isoformat(), NOON.isoformat())
    assert "BooksOpen: why" in failure(run({}, Launched(request="asked", given=json.dumps(asdict(given)))))
