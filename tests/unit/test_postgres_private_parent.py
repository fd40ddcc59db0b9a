"""The embedded PostgreSQL finds its programs although a parent folder lets only root in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local.postgres import as_ordinary_user


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")
def test_an_unprivileged_server_passes_through_root_s_private_folder(tmp_path: Path):
    tmp_path.chmod(0o700)
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    question = f"import os, sys; sys.exit(0 if os.geteuid() and os.access({str(program)!r}, os.X_OK) else 1)"
    assert subprocess.run([*as_ordinary_user(), sys.executable, "-c", question], check=False).returncode == 0
