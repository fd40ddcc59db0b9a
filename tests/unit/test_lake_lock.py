"""One writer per lake: the second is refused and told who the first is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crm_resources.lake_lock import LakeLocked, lake_lock, lock_holder
from crm_resources.settings import Settings, load_settings

HOLDER = """
import sys
from crm_resources.lake_lock import lake_lock
from crm_resources.settings import load_settings
with lake_lock(load_settings({"CRM_HOME": sys.argv[1]}), "stream"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"CRM_HOME": str(tmp_path)})


def test_second_writer_is_refused_and_told_who_holds_the_lock(settings: Settings) -> None:
    with lake_lock(settings, "rebuild"), pytest.raises(LakeLocked, match=rf"rebuild \(process {os.getpid()}"):
        lake_lock(settings, "stream").__enter__()


def test_lock_is_free_again_afterwards(settings: Settings) -> None:
    with lake_lock(settings, "rebuild"):
        holder = lock_holder(settings)
        assert holder is not None
        assert holder.role == "rebuild"
    assert lock_holder(settings) is None
    with lake_lock(settings, "stream"):
        pass


def test_killed_holder_leaves_no_lock(settings: Settings) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(settings.home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(LakeLocked, match=str(process.pid)):
        lake_lock(settings, "rebuild").__enter__()

    process.kill()
    process.communicate()

    with lake_lock(settings, "rebuild"):
        assert lock_holder(settings) is not None
