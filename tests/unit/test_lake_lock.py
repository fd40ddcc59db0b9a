"""One writer per lake: the second is refused and told who the first is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crm_resources.lake_lock import LakeLocked, lake_lock, lock_holder

HOLDER = """
import sys
from crm_resources.lake_lock import lake_lock
with lake_lock(sys.argv[1], "stream"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_second_writer_is_refused_and_told_who_holds_the_lock(tmp_path: Path) -> None:
    with lake_lock(str(tmp_path), "rebuild"), pytest.raises(LakeLocked, match=rf"rebuild \(process {os.getpid()}"):
        lake_lock(str(tmp_path), "stream").__enter__()


def test_lock_is_free_again_afterwards(tmp_path: Path) -> None:
    with lake_lock(str(tmp_path), "rebuild"):
        holder = lock_holder(str(tmp_path))
        assert holder is not None
        assert holder.role == "rebuild"
    assert lock_holder(str(tmp_path)) is None
    with lake_lock(str(tmp_path), "stream"):
        pass


def test_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(LakeLocked, match=str(process.pid)):
        lake_lock(str(tmp_path), "rebuild").__enter__()

    process.kill()
    process.communicate()

    with lake_lock(str(tmp_path), "rebuild"):
        assert lock_holder(str(tmp_path)) is not None


def test_object_store_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match="s3://lake/demo"):
        lake_lock("s3://lake/demo", "stream")
