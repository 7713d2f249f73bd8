"""Jobs: start, stop, fail, delete, list, metadata."""

from uuid import uuid4

import osparc
import pytest
from harness import FINAL, QUEUED, SLEEPER, Client, errors_of, refused, wait_until


def test_start_twice(ada: Client):
    job = ada.job(input_2=1)
    first, second = (ada.http.post(job.path(":start")) for _ in range(2))
    assert (first.status_code, second.status_code) == (202, 200)
    assert first.json()["state"] == "PUBLISHED"
    assert second.json()["state"] in QUEUED | {"STARTED"}
    job.until("SUCCESS")
    third = ada.http.post(job.path(":start"))
    assert (third.status_code, third.json()["state"]) == (200, "SUCCESS")


def test_only_defaults(ada: Client):
    job = ada.job()
    job.run()
    assert set(job.outputs()) == {"output_1", "output_2"}


def test_stop_a_running_job(server, ada: Client):
    job = ada.job(input_2=60).start()
    job.until("STARTED")
    assert server.containers() == [job.id] and server.work(), "what a running job has, and what must be gone below"
    assert ada.http.post(job.path(":stop")).status_code == 200
    status = job.until("ABORTED", seconds=20)
    assert status.progress == 100 and status.stopped_at
    wait_until(lambda: (server.containers(), server.work()), lambda seen: seen == ([], []), 20, "the job's container and folder are gone")
    assert job.stop().state == "ABORTED"
    assert job.log_file()[0] == "sleeper_2.1.6.logs"
    with refused(409):
        job.outputs()


def test_stop_an_unstarted_job(ada: Client):
    job = ada.job()
    status = job.stop()
    assert status.state in ("NOT_STARTED", "ABORTED") and status.started_at is None
    assert job.inspect() == status


def test_stop_a_queued_job(ada: Client, shell: str, tmp_path):
    endless = ada.upload(tmp_path, "script.sh", "exec sleep 600")
    running, queued = (ada.job(shell, "1.1.0", script=endless) for _ in range(2))
    running.start().until("STARTED")
    queued.start()
    status = queued.stop()
    assert status.state in QUEUED | {"ABORTED"}
    status = queued.until("ABORTED", seconds=5)
    assert status.started_at is None and status.stopped_at
    assert running.inspect().state == "STARTED"
    running.stop()
    running.until("ABORTED", seconds=20)


def test_a_job_that_waits_for_room_is_polled_to_its_end(ada: Client, bob: Client, shell: str, tmp_path):
    endless = ada.upload(tmp_path, "script.sh", "exec sleep 600")
    short = bob.upload(tmp_path, "script.sh", "echo done >$OUTPUT_FOLDER/seen.txt")
    running = ada.job(shell, "1.1.0", script=endless).start()
    running.until("STARTED")
    waiting = bob.job(shell, "1.1.0", script=short).start()
    status = waiting.until("WAITING_FOR_RESOURCES")
    assert (status.progress, status.started_at, status.stopped_at) == (0, None, None)
    reason = bob.http.post(waiting.path(":inspect")).json()["waiting"]
    assert reason.startswith("it asks for ") and "CPU" in reason, reason
    running.stop()
    assert waiting.until("SUCCESS").progress == 100
    running.until("ABORTED", seconds=20)


def test_stop_a_finished_job(ada: Client):
    job = ada.job(input_2=0)
    status = job.run()
    assert job.stop() == job.inspect() == status


def test_failing_solver(ada: Client):
    job = ada.job(input_2=0, input_3=True).start()
    status = job.until("FAILED")
    assert status.progress == 100 and status.stopped_at
    [error] = status.errors
    assert error.type == "runtime" and "exit" in error.msg.lower(), error
    assert job.id in [part.actual_instance for part in error.loc]
    # The reason is in the status: the last lines that the solver printed.
    name, text = job.log_file()
    last_lines = [line.partition(" ")[2].strip() for line in text.splitlines()[-20:]]
    assert any(line and line in str(error.to_dict()) for line in last_lines), (error, text)
    assert name == "sleeper_2.1.6.logs"
    with refused(409) as info:
        job.outputs()
    assert "FAILED" in info.value.body


def test_missing_output(ada: Client, shell: str, tmp_path):
    job = ada.job(shell, "1.0.0", script=ada.upload(tmp_path, "script.sh", "echo done")).start()
    [error] = job.until("FAILED").errors
    assert error.type == "ServiceBadFormattedOutputError"
    assert "seen" in error.msg and "seen.txt" in error.msg, error


def test_no_outputs_before_the_end(ada: Client):
    job = ada.job()
    with refused(409):
        job.outputs()
    with refused(404):
        job.log_file()


def test_delete_a_running_job(server, ada: Client):
    job = ada.job(input_2=60).start()
    job.until("STARTED")
    gone = ada.http.delete(job.path())
    assert (gone.status_code, gone.content) == (204, b"")
    for call in (ada.solvers.get_job, ada.solvers.inspect_job, ada.solvers.delete_job):
        with refused(404):
            call(*job.at)
    wait_until(lambda: (server.containers(), server.work()), lambda seen: seen == ([], []), 20, "the job's container and folder are gone")


def test_delete_a_finished_job(ada: Client, tmp_path):
    job = ada.job(input_2=0)
    job.run()
    output = job.outputs()["output_1"]
    assert ada.download(output, tmp_path).read_text()
    ada.solvers.delete_job(*job.at)
    with refused(404):
        ada.solvers.get_job(*job.at)
    assert ada.http.get(f"/v0/files/{output.id}/content").status_code == 404


def test_delete_assets(ada: Client):
    delete = ada.solvers.delete_job_assets
    job = ada.job(input_2=0)
    ada.solvers.replace_job_custom_metadata(*job.at, osparc.JobMetadataUpdate(metadata={"run": 7}))
    with refused(409):
        delete(*job.at)
    status = job.run()
    output = job.outputs()["output_1"]
    assert ada.http.delete(job.path("/assets")).status_code == 204
    delete(*job.at)  # again, as after a lost answer
    for call in (job.outputs, job.start):
        with refused(409):
            call()
    with refused(404):
        job.log_file()
    assert job.read_log_stream() == []
    assert ada.http.get(f"/v0/files/{output.id}/content").status_code == 404
    assert job.inspect() == status
    assert ada.solvers.get_job_custom_metadata(*job.at).metadata == {"run": 7}
    ada.solvers.delete_job(*job.at)
    with refused(404):
        delete(*job.at)


def test_assets_of_a_running_job(ada: Client):
    job = ada.job(input_2=60).start()
    job.until("STARTED")
    with refused(409):
        ada.solvers.delete_job_assets(*job.at)
    job.stop()
    job.until("ABORTED", seconds=20)
    ada.solvers.delete_job_assets(*job.at)
    assert job.inspect().state == "ABORTED"


def test_unknown_job(ada: Client):
    job = ada.job()
    for key, version, job_id, status in [
        (SLEEPER, "2.1.6", str(uuid4()), 404),
        (SLEEPER, "2.1.1", job.id, 404),
        ("simcore/services/comp/itis/nothing", "2.1.6", job.id, 404),
    ]:
        with refused(status):
            ada.solvers.inspect_job(key, version, job_id)
    response = ada.http.get(f"/v0/solvers/{SLEEPER}/releases/2.1.6/jobs/not-a-uuid")
    assert response.status_code == 422
    errors_of(response)


def test_45_jobs_in_pages(newcomer: Client):
    release = (SLEEPER, "2.0.2")
    assert list(newcomer.solvers.iter_jobs(*release)) == []
    created = [str(newcomer.job(SLEEPER, "2.0.2", input_2=n).id) for n in range(45)]
    jobs = newcomer.solvers.iter_jobs(*release)
    assert len(jobs) == 45
    assert [str(job.id) for job in jobs] == created[::-1], "newest first, each once"

    path = f"/v0/solvers/{SLEEPER}/releases/2.0.2/jobs/page"
    page = newcomer.http.get(path, params={"limit": 20, "offset": 20}).json()
    assert (page["total"], page["limit"], page["offset"], len(page["items"])) == (45, 20, 20, 20)
    offsets = {"first": 0, "prev": 0, "self": 20, "next": 40, "last": 40}
    for name, offset in offsets.items():
        assert page["links"][name].startswith("/v0/"), "links are relative"
        linked = newcomer.http.get(page["links"][name]).json()
        assert (linked["offset"], linked["limit"], linked["total"]) == (offset, 20, 45), name
    last = newcomer.http.get(page["links"]["last"]).json()
    assert len(last["items"]) == 5 and last["links"]["next"] is None
    first = newcomer.http.get(page["links"]["first"]).json()
    assert first["links"]["prev"] is None
    beyond = newcomer.http.get(path, params={"offset": 45}).json()
    assert (beyond["items"], beyond["total"], beyond["links"]["next"]) == ([], 45, None)


@pytest.mark.parametrize("query", ["limit=0", "limit=51", "limit=many", "offset=-1"])
def test_page_out_of_bounds(ada: Client, query: str):
    response = ada.http.get(f"/v0/solvers/{SLEEPER}/releases/2.1.6/jobs/page?{query}")
    assert response.status_code == 422
    assert query.partition("=")[0] in errors_of(response)


def test_metadata(ada: Client):
    job = ada.job(input_2=0)
    get, put = ada.solvers.get_job_custom_metadata, ada.solvers.replace_job_custom_metadata
    assert get(*job.at).metadata == {}
    for metadata in ({"run": 7, "mesh": "fine", "tolerance": 0.5, "final": True}, {"mesh": "coarse"}):
        assert put(*job.at, osparc.JobMetadataUpdate(metadata=metadata)).metadata == metadata
        answer = get(*job.at)
        assert (answer.job_id, answer.metadata) == (job.id, metadata)
        assert list(map(type, answer.metadata.values())) == list(map(type, metadata.values()))
    job.run()
    assert get(*job.at).metadata == {"mesh": "coarse"}


@pytest.mark.parametrize("value", [{"nested": 1}, [1], None], ids=repr)
def test_metadata_is_flat(ada: Client, value):
    job = ada.job()
    response = ada.http.patch(job.path("/metadata"), json={"metadata": {"key": value}})
    assert response.status_code == 422
    assert "key" in errors_of(response)
    assert ada.solvers.get_job_custom_metadata(*job.at).metadata == {}


def test_several_at_once(ada: Client):
    jobs = [ada.job(input_2=1).start() for _ in range(4)]
    assert {job.until(*FINAL).state.value for job in jobs} == {"SUCCESS"}
    assert len({job.outputs()["output_1"].id for job in jobs}) == 4
