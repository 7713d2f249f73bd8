"""One real server for the whole session, its solvers, and two users who know nothing of each other."""

import itertools
import json

import pytest
from harness import REPO, SLEEPER, SLEEPER_VERSIONS, Server, docker

_running: list[Server] = []


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("solverd"))
    server.start()
    _running.append(server)
    yield server
    server.stop()


def pytest_terminal_summary(terminalreporter, exitstatus):
    for server in _running if exitstatus else []:
        terminalreporter.write_line(server.log_tail())


@pytest.fixture(scope="session")
def sleeper(server):
    for version in SLEEPER_VERSIONS:
        server.run("solvers", "publish", f"{SLEEPER}:{version}")


@pytest.fixture(scope="session")
def ada(server, sleeper):
    """The bootstrap user."""
    return server.client()


@pytest.fixture(scope="session")
def bob(server, sleeper):
    """A second user, made on the command line beside the running server."""
    return server.new_user("bob@example.org")


@pytest.fixture
def newcomer(server, sleeper, _number=itertools.count(1)):
    """A user without files and jobs."""
    return server.new_user(f"newcomer{next(_number)}@example.org")


@pytest.fixture(scope="session")
def calculix(server):
    """The finite-element solver's metadata."""
    metadata = json.loads((REPO / "solvers/calculix/metadata.json").read_text())
    server.run("solvers", "publish", f"{metadata['key']}:{metadata['version']}")
    return metadata


SHELL = "simcore/services/comp/test/shell"
SHELL_PORTS = {
    "inputs": {
        "script": {"type": "data:text/plain", "fileToKeyMap": {"script.sh": "script"}},
        "number": {"type": "number", "defaultValue": 1.5},
        "whole": {"type": "integer"},
        "flag": {"type": "boolean"},
        "text": {"type": "string"},
        "bounded": {"type": "ref_contentSchema", "contentSchema": {"title": "bounded", "type": "integer", "minimum": 0, "maximum": 65}},
    },
    "outputs": {"seen": {"type": "data:text/plain", "fileToKeyMap": {"seen.txt": "seen"}}},
}


@pytest.fixture(scope="session")
def shell(server, calculix):
    """A solver that runs the script it is given: release 1.0.0 on a little of the machine, 1.1.0 on all its CPUs."""
    machine = int(docker("info", "--format", "{{.NCPU}}")) * 10**9
    for version, nano_cpus in {"1.0.0": 10**8, "1.1.0": machine}.items():
        ports = {
            side: {key: {"label": key, "description": key, **port} for key, port in ports.items()}
            for side, ports in SHELL_PORTS.items()
        }
        about = {"key": SHELL, "version": version, "type": "computational", "name": "shell", "description": "Runs a script.",
                 "integration-version": "1.0.0", "contact": "ada@example.org", "authors": [], **ports}  # fmt: skip
        share = {"NanoCPUs": nano_cpus, "MemoryBytes": 64 * 2**20}
        labels = {f"io.simcore.{field}": {field: value} for field, value in about.items()} | {
            "simcore.service.settings": [{"name": "Resources", "type": "Resources", "value": {"Limits": share, "Reservations": share}}]
        }
        arguments = [f"--label={name}={json.dumps(value)}" for name, value in labels.items()]
        recipe = f'FROM {calculix["key"]}:{calculix["version"]}\nENTRYPOINT ["/bin/sh", "/inputs/script.sh"]\n'
        docker("build", "--tag", f"{SHELL}:{version}", *arguments, "-", stdin=recipe)
        server.run("solvers", "publish", f"{SHELL}:{version}")
    yield SHELL
    docker("rmi", f"{SHELL}:1.0.0", f"{SHELL}:1.1.0")
