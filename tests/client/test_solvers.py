"""The catalogue: which solvers and releases there are, and their ports."""

import pytest
from harness import SLEEPER, SLEEPER_VERSIONS, Client, errors_of, refused


def test_releases_ascend(ada: Client):
    releases = ada.solvers.list_solver_releases(SLEEPER)
    assert [release.version for release in releases] == SLEEPER_VERSIONS
    assert {release.id for release in releases} == {SLEEPER}


def test_latest_is_the_last_release(ada: Client):
    latest = ada.solvers.get_solver(SLEEPER)
    assert latest == ada.solvers.get_solver_release(SLEEPER, "2.1.6") == ada.solvers.list_solver_releases(SLEEPER)[-1]
    assert latest.title and latest.maintainer
    assert ada.http.get(latest.url).json()["version"] == "2.1.6", "a solver's url leads to it"


def test_lists(ada: Client, calculix):
    newest = [(solver.id, solver.version) for solver in ada.solvers.list_solvers()]
    assert newest == sorted(newest)
    assert len({key for key, _ in newest}) == len(newest)
    assert {(SLEEPER, "2.1.6"), (calculix["key"], calculix["version"])} <= set(newest)
    every = [(solver.id, solver.version) for solver in ada.solvers.list_solvers_releases()]
    assert every == sorted(every)
    assert [version for key, version in every if key == SLEEPER] == SLEEPER_VERSIONS
    assert set(newest) <= set(every)


@pytest.mark.parametrize("version", SLEEPER_VERSIONS)
def test_ports(ada: Client, version: str):
    ports = ada.solvers.list_solver_ports(SLEEPER, version)
    kinds = {port.key: port.kind for port in ports}
    assert list(kinds.items()) == [(f"input_{n}", "input") for n in (1, 2, 3, 4)] + [(f"output_{n}", "output") for n in (1, 2)]
    types = {port.key: port.content_schema["type"] for port in ports}
    assert types == {"input_1": "string", "input_2": "integer", "input_3": "boolean", "input_4": "integer",
                     "output_1": "string", "output_2": "integer"}  # fmt: skip
    assert all(port.content_schema["title"] for port in ports)


@pytest.mark.parametrize("suffix", ["releases", "latest", "releases/2.1.6", "releases/2.1.6/ports", "releases/2.1.6/jobs/page"])
def test_slashes_may_be_encoded_or_not(ada: Client, suffix: str):
    raw = ada.http.get(f"/v0/solvers/{SLEEPER}/{suffix}")
    encoded = ada.http.get(f"/v0/solvers/{SLEEPER.replace('/', '%2F')}/{suffix}")
    assert (raw.status_code, encoded.status_code) == (200, 200), raw.text + encoded.text
    assert raw.json() == encoded.json()


@pytest.mark.parametrize(
    ("key", "version", "status"),
    [
        ("simcore/services/comp/itis/nothing", "2.1.6", 404),
        (SLEEPER, "9.9.9", 404),
        ("sleeper", "2.1.6", 422),
        ("simcore/services/dynamic/itis/sleeper", "2.1.6", 422),
        (SLEEPER, "newest", 422),
    ],
)
def test_no_such_release(ada: Client, key: str, version: str, status: int):
    for call in (ada.solvers.get_solver_release, ada.solvers.list_solver_ports, ada.solvers.iter_jobs):
        with refused(status):
            len(call(key, version))


def test_no_such_solver(ada: Client):
    with refused(404):
        ada.solvers.get_solver("simcore/services/comp/itis/nothing")
    response = ada.http.get("/v0/solvers/sleeper/latest")
    assert response.status_code == 422
    assert "sleeper" in errors_of(response)
