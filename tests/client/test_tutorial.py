"""The tutorial, as the program a user runs, and call by call."""

from pathlib import Path

import osparc
from harness import SLEEPER, Client, Job, wait_until


def test_program(server, sleeper):
    done = server.script("tutorial.py")
    assert done.returncode == 0, done.stdout + done.stderr
    for line in ("100/100 SUCCESS", "sleeper_2.1.6.logs", "[PROGRESS]"):
        assert line in done.stdout, done.stdout


def test_program_says_what_is_wrong(server, sleeper):
    done = server.script("tutorial.py", OSPARC_API_SECRET="wrong")
    assert done.returncode == 1
    assert "401" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_call_by_call(server, ada: Client, tmp_path: Path):
    profile = ada.users.get_my_profile()
    assert profile.login == server.EMAIL and profile.id > 0

    solver = ada.solvers.get_solver_release(SLEEPER, "2.1.6")
    ports = ada.solvers.list_solver_ports(solver.id, solver.version)
    assert [port.key for port in ports] == ["input_1", "input_2", "input_3", "input_4", "output_1", "output_2"]

    seconds = ada.upload(tmp_path, "seconds.txt", "1")
    inputs = osparc.JobInputs({"input_1": seconds, "input_2": 1, "input_3": "false", "input_4": 1})
    job = Job(ada, solver.id, solver.version, ada.solvers.create_job(solver.id, solver.version, inputs))
    assert ada.solvers.get_job(*job.at) == job.created
    assert (job.inspect().state, job.inspect().progress) == ("NOT_STARTED", 0)

    first = ada.solvers.start_job(*job.at)
    assert (first.state, first.progress, first.started_at, first.stopped_at) == ("PUBLISHED", 0, None, None)
    seen = [first]
    last = wait_until(lambda: seen.append(job.inspect()) or seen[-1], lambda status: status.stopped_at, 60, "the job ends")
    assert (last.state, last.progress, last.errors) == ("SUCCESS", 100, None)
    assert first.submitted_at == last.submitted_at <= last.started_at <= last.stopped_at
    assert sorted(status.progress for status in seen) == [status.progress for status in seen], "progress fell"
    assert any(0 < status.progress < 100 for status in seen), "progress jumped"
    order = {"PUBLISHED": 0, "PENDING": 1, "WAITING_FOR_RESOURCES": 1, "STARTED": 2, "SUCCESS": 3}
    states = [order[status.state.value] for status in seen]
    assert states == sorted(states)

    results = job.outputs()
    assert set(results) == {"output_1", "output_2"}
    assert results["output_1"].filename == "single_number.txt"
    assert ada.download(results["output_1"], tmp_path).read_text().strip().isdigit()
    assert type(results["output_2"]) is int
    assert job.outputs() == results, "output file ids must not change"

    name, text = job.log_file()
    assert name == "sleeper_2.1.6.logs" and "[PROGRESS]" in text
