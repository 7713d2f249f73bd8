"""Each generated client runs a job from upload to log against a server of our own. `clients/check.sh` compiles them first."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CACHE = HERE.parent.parent / ".cache"
sys.path.insert(0, str(HERE.parent.parent / "tests/client"))

from harness import SLEEPER, Server  # noqa: E402

PROGRAMS = {
    "python": [sys.executable, HERE / "journey.py"],
    "typescript": ["node", HERE / "journey.mjs", CACHE / "clients/typescript/dist"],
    "go": [CACHE / "clients/go/journey"],
}


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("solverd"))
    server.start()
    server.run("solvers", "publish", f"{SLEEPER}:2.1.6")
    yield server
    server.stop()


@pytest.mark.parametrize("language", PROGRAMS)
def test_a_job_from_upload_to_log(server: Server, language: str):
    user = server.new_user(f"{language}@example.org")
    access = {"SOLVER_URL": server.url, "SOLVER_KEY": user.key, "SOLVER_SECRET": user.secret, "PYTHONPATH": str(HERE.parent / "python")}
    done = subprocess.run(PROGRAMS[language], env=os.environ | access, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "done\n"), f"{done.stdout}\n{done.stderr}\n{server.log_tail()}"
