"""Two services, each with a data folder of its own, on one database and one object store: they share the queue, and users need not know which
of them runs a job. One that is gone does not take its jobs with it."""

import json
import re
import shutil
import signal
import subprocess
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import pytest
from harness import REPO, Client, Job, Server, docker, wait_until

# Prints the time twice a second, and goes when it is told to. Numbers come from the input, and so the output is known.
TICKS = """trap 'exit 0' TERM
cp /inputs/inputs.json /outputs/seen.txt
i=0; while [ $i -lt {ticks} ]; do i=$((i + 1)); echo "tick $(date +%s.%N)"; sleep 0.5; done
"""
FOREVER = 10000

# Seconds without a sign after which a service is taken for gone, and those within which that is noticed and done.
TIMEOUT = 15
NOTICED = TIMEOUT + 30


@pytest.fixture(scope="module")
def database():
    """A database of the private Postgres server."""
    url = subprocess.run([REPO / "scripts/postgres.sh"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    name = f"solverd_test_{uuid.uuid4().hex}"
    psql = shutil.which("psql") or max(Path("/usr/lib/postgresql").glob("*/bin/psql"))

    def execute(statement):
        subprocess.run([psql, "--quiet", url, "--command", statement], check=True)

    execute(f"CREATE DATABASE {name}")
    yield f"{url.rsplit('/', 1)[0]}/{name}"
    execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def pair(tmp_path_factory, database, shell):
    """The two, and a third one that is nothing but their object store."""
    folder = tmp_path_factory.mktemp("two-services")
    storage = Server(folder / "storage")
    storage.start()
    shared = storage.s3() | {"SOLVERD_DATABASE_URL": database, "SOLVERD_INSTANCE_TIMEOUT": str(TIMEOUT)}
    servers = [Server(folder / name, **shared) for name in ("one", "two")]
    for server in servers:
        server.start()
    servers[0].run("solvers", "publish", f"{shell}:1.0.0", f"{shell}:1.1.0")
    yield servers
    for server in [*servers, storage]:
        server.stop()


@pytest.fixture
def clients(pair):
    return [server.client() for server in pair]


@pytest.fixture
def tick(clients, shell, tmp_path):
    """Starts a job at one of the two; gives the job as both see it."""

    def start(at: int, ticks: int, version="1.0.0") -> list[Job]:
        script = clients[at].upload(tmp_path, "script.sh", TICKS.format(ticks=ticks))
        job = clients[at].job(shell, version, script=script, whole=ticks).start()
        return [as_seen_by(client, job) for client in clients]

    return start


def as_seen_by(client: Client, job: Job) -> Job:
    return Job(client, job.solver, job.version, job.created)


def holder(pair: list[Server], job: Job) -> int:
    """Which of the two runs the job."""
    job.until("STARTED")
    instance = docker("inspect", "--format", '{{index .Config.Labels "solverd.instance"}}', f"solverd-{job.id}").strip()
    return [server.instance for server in pair].index(instance)


@contextmanager
def container_starts(pair: list[Server], folder: Path):
    """Gives a function that tells the job and the instance of every container of the two that has started since."""
    seen, since = folder / "starts", f"{time.time():.6f}"
    form = '{{index .Actor.Attributes "solverd.job"}} {{index .Actor.Attributes "solverd.instance"}}'
    command = ["docker", "events", "--since", since, "--filter", "event=start", "--filter", "label=solverd.instance", "--format", form]
    with seen.open("wb") as out:
        watch = subprocess.Popen(command, stdout=out)
    instances = {server.instance for server in pair}
    try:
        yield lambda: [(job, instance) for job, instance in map(str.split, seen.read_text().splitlines()) if instance in instances]
    finally:
        watch.terminate()
        watch.wait(30)


def test_every_job_runs_once_and_is_the_same_through_both(pair, tick, tmp_path):
    with container_starts(pair, tmp_path) as starts:
        jobs = [tick(number % 2, number) for number in range(6)]
        for at_one, at_two in jobs:
            at_one.until("SUCCESS")
            at_two.until("SUCCESS", seconds=1)
        ran = wait_until(starts, lambda seen: len(seen) >= len(jobs), 10, "all starts are told")
        assert sorted(job for job, _ in ran) == sorted(one.id for one, _ in jobs)
        assert {instance for _, instance in ran} == {server.instance for server in pair}, "both have taken part"
    for number, (one, two) in enumerate(jobs):
        assert one.inspect() == two.inspect()
        stream = one.read_log_stream()
        assert stream == two.read_log_stream()
        assert sum(item["messages"][0].startswith("tick ") for item in stream) == number
        assert one.log_file() == two.log_file()
        files = [job.outputs()["seen"] for job in (one, two)]
        assert files[0] == files[1]
        contents = [json.loads(job.client.download(file, tmp_path).read_text()) for job, file in zip((one, two), files)]
        assert contents[0] == contents[1] and contents[0]["whole"] == number, contents


def test_one_runs_what_the_other_has_no_room_for(pair, tick):
    """Each of these jobs takes a whole machine, as each of the two counts it."""
    jobs = [tick(0, FOREVER, "1.1.0") for _ in pair]
    assert {holder(pair, one) for one, _ in jobs} == {0, 1}
    for _, two in jobs:
        two.stop()
    for one, _ in jobs:
        one.until("ABORTED")


@pytest.mark.parametrize("at", [0, 1])
def test_the_one_that_does_not_run_a_job_stops_it(pair, tick, at):
    job = tick(at, FOREVER)
    other = job[1 - holder(pair, job[0])]
    asked = time.monotonic()
    other.stop()
    other.until("ABORTED")
    print(f"a stop through the other service took {time.monotonic() - asked:.1f} s")


def test_a_log_is_followed_through_the_other(pair, tick):
    jobs = tick(0, FOREVER)
    runs = holder(pair, jobs[0])

    def late(job: Job) -> list[float]:
        """How late the lines come, in seconds."""
        lateness = []
        with job.log_stream() as items:
            for item in items:
                if found := re.match(r"tick (\S+)", item["messages"][0]):
                    lateness.append(time.time() - float(found[1]))
                    if len(lateness) == 40:
                        return lateness
        raise AssertionError(f"the log ended after {len(lateness)} lines")

    with ThreadPoolExecutor() as pool:
        here, there = pool.map(late, [jobs[runs], jobs[1 - runs]])
    jobs[0].stop()
    jobs[0].until("ABORTED")
    for where, lateness in {"that runs the job": here, "beside it": there}.items():
        print(f"through the service {where}, lines are {median(lateness):.2f} s late, at most {max(lateness):.2f} s")
    assert max(there) < 10, there


def assert_lost(status, name: str):
    [error] = status.errors
    assert error.type == "runtime.lost", error
    assert re.fullmatch(rf"instance {name} of solverd, which ran the job, was not seen since \S+Z; start a new job", error.msg), error


def wait_until_nothing_is_left(server: Server):
    left = {"containers": [], "work": []}
    wait_until(lambda: {"containers": server.containers(), "work": server.work()}, lambda seen: seen == left, 30, "nothing is left of the job")


def assert_stayed(before, jobs: list[Job]):
    for job in jobs:
        assert job.inspect() == before
        name, text = job.log_file()
        assert "start a new job" in text.splitlines()[-1], text[-1000:]


def test_jobs_of_a_service_that_is_gone_are_lost(pair, tick, tmp_path):
    with container_starts(pair, tmp_path) as starts:
        jobs = tick(1, FOREVER)
        runs = holder(pair, jobs[0])
        gone, other = pair[runs], jobs[1 - runs]
        gone.process.kill()
        gone.process.wait(30)
        killed = time.monotonic()
        status = other.until("FAILED", seconds=NOTICED)
        print(f"with a timeout of {TIMEOUT} s, the end took {time.monotonic() - killed:.1f} s")
        assert_lost(status, gone.instance)
        assert gone.containers() == [other.id], "it may only be cut off: its container is its own"

        gone.start()
        wait_until_nothing_is_left(gone)
        assert_stayed(status, [as_seen_by(gone.client(), other), other])
        assert [job for job, _ in starts()] == [other.id]


def test_a_service_that_was_only_cut_off_gives_up_its_job(pair, tick):
    jobs = tick(1, FOREVER)
    runs = holder(pair, jobs[0])
    frozen, other = pair[runs], jobs[1 - runs]
    frozen.process.send_signal(signal.SIGSTOP)
    try:
        status = other.until("FAILED", seconds=NOTICED)
    finally:
        frozen.process.send_signal(signal.SIGCONT)
    back = time.monotonic()
    assert_lost(status, frozen.instance)
    wait_until_nothing_is_left(frozen)
    print(f"what came back had let go after {time.monotonic() - back:.1f} s")
    assert_stayed(status, jobs)
