"""Settings: what wins over what, and what a wrong value says."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from crm_resources.settings import Settings, load_settings, wrong_settings
from crm_resources.settings_docs import PAGE, up_to_date


def test_defaults_work_with_an_empty_environment(tmp_path: Path):
    settings = load_settings({"CRM_HOME": str(tmp_path)})
    assert settings.env == "demo"
    assert settings.lake_root == f"{tmp_path}/demo/lake"
    assert settings.database == "crm_demo"


def test_environment_wins_over_the_data_set_s_facts_and_those_over_the_stack(tmp_path: Path):
    (tmp_path / "stack.env").write_text("CRM_POSTGRES_PORT=1111\nCRM_BUSINESS_TIMEZONE=UTC\nCRM_TRIGGER_SECONDS=3\n")
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "environment.env").write_text("CRM_BUSINESS_TIMEZONE=Europe/London\nCRM_TRIGGER_SECONDS=4\n")
    settings = load_settings({"CRM_HOME": str(tmp_path), "CRM_TRIGGER_SECONDS": "5"})
    assert (settings.postgres_port, settings.business_timezone, settings.trigger_seconds) == (1111, "Europe/London", 5)


def test_two_data_sets_share_nothing_but_the_stack(tmp_path: Path):
    one, other = (load_settings({"CRM_HOME": str(tmp_path), "CRM_ENV": env}) for env in ("demo", "online_retail"))
    assert one.lake_root != other.lake_root
    assert one.database != other.database
    assert one.checkpoint_root != other.checkpoint_root


@pytest.mark.parametrize(
    ("variable", "value"),
    [("CRM_ENV", "No Spaces"), ("CRM_BUSINESS_TIMEZONE", "Mars/Olympus"), ("CRM_POSTGRES_PORT", "0"), ("CRM_DRIVER_MEMORY", "lots")],
)
def test_a_wrong_value_is_refused_and_named(tmp_path: Path, variable, value):
    with pytest.raises(ValidationError) as refused:
        load_settings({"CRM_HOME": str(tmp_path), variable: value})
    assert variable.removeprefix("CRM_").lower() in str(refused.value).lower()


def test_the_password_in_a_dsn_is_never_printed(tmp_path: Path):
    settings = load_settings({"CRM_HOME": str(tmp_path), "CRM_WAREHOUSE_DSN": "postgresql://u:hunter2@db/crm"})
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings.model_dump())


def test_a_wrong_setting_is_told_without_any_secret(tmp_path: Path):
    secrets = {"CRM_S3_SECRET_KEY": "hunter2", "CRM_PSEUDONYM_KEY": "hunter3"}
    with pytest.raises(ValidationError) as half:
        load_settings({"CRM_HOME": str(tmp_path), **secrets})
    with pytest.raises(ValidationError) as wrong:
        load_settings({"CRM_HOME": str(tmp_path), "CRM_SPARK_CORES": "many", **secrets})

    assert wrong_settings(half.value) == ["CRM_S3_ACCESS_KEY is missing; an access key and its secret are given together"]
    assert [line.partition(": ")[0] for line in wrong_settings(wrong.value)] == ["CRM_SPARK_CORES='many'"]
    assert "hunter" not in f"{half.value} {wrong.value}"


def test_each_setting_is_described():
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_the_table_of_settings_is_not_stale():
    assert up_to_date() == PAGE.read_text(), "run `make contracts` and commit docs/settings.md"
