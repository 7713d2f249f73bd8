"""Studies, with oSPARC's own StudiesApi."""

import json
import subprocess
import zipfile
from pathlib import Path

import osparc
import pytest
from harness import FINAL, REPO, errors_of, wait_until

FOLDER = REPO / "solvers/studies"
TITLE = "sleeper_test_study"


@pytest.fixture(scope="module")
def published(server, sleeper):
    for _ in range(2):
        server.run("solvers", "publish", str(FOLDER / f"{TITLE}.json"), str(FOLDER / "parallel_sleepers.json"))


@pytest.fixture
def studies(ada, published):
    return osparc.StudiesApi(ada.files.api_client)


@pytest.fixture
def study(studies):
    """As oSPARC's tests find it."""
    [uid] = [study.uid for study in studies.iter_studies() if study.title == TITLE]
    return uid


def ended(studies, study, job):
    def inspect():
        return studies.inspect_study_job(study, job.id)

    status = wait_until(inspect, lambda seen: seen.state in FINAL, 60, f"job {job.id} has ended")
    assert status.stopped_at is not None and status.progress == 100
    return status


def test_journey(ada, studies, study, tmp_path):
    seconds = ada.upload(tmp_path, "seconds.txt", "1")
    job = studies.create_study_job(study, osparc.JobInputs({"input_file": seconds}))
    assert isinstance(job, osparc.Job)
    assert job.name == f"studies/{study}/jobs/{job.id}"
    assert studies.inspect_study_job(study, job.id).state == "NOT_STARTED"
    assert studies.start_study_job(study, job.id).state == "PUBLISHED"
    assert isinstance(studies.start_study_job(study, job.id), osparc.JobStatus)
    status = ended(studies, study, job)
    assert status.state == "SUCCESS", status

    outputs = studies.get_study_job_outputs(study, job.id)
    assert isinstance(outputs, osparc.JobOutputs)
    number = outputs.results["output_number"]
    assert ada.download(outputs.results["output_file"], tmp_path).read_text() == str(number)

    logs = studies.get_study_job_output_logfiles(study, job.id)
    assert sorted(path.name for path in Path(logs).iterdir()) == ["first.zip", "second.zip", f"{TITLE}.zip"]
    with zipfile.ZipFile(Path(logs) / "second.zip") as archive:
        [name] = archive.namelist()
        assert f"the answer is {number}" in archive.read(name).decode()

    assert studies.delete_study_job(study, job.id) is None
    with pytest.raises(osparc.ApiException) as error:
        studies.inspect_study_job(study, job.id)
    assert error.value.status == 404
    assert studies.list_studies().total >= 2


def test_ports(studies, study):
    ports = studies.list_study_ports(study).items
    shown = [(port.kind, port.content_schema["title"], port.content_schema["type"]) for port in ports]
    assert shown == [("input", "input_file", "string"), ("output", "output_file", "string"), ("output", "output_number", "integer")]
    assert len({port.key for port in ports}) == 3


def test_stop(studies, published):
    [study] = [study.uid for study in studies.iter_studies() if study.title == "parallel_sleepers"]
    job = studies.create_study_job(study, osparc.JobInputs({"seconds": 300}))
    assert studies.stop_study_job(study, job.id).state == "NOT_STARTED"
    studies.start_study_job(study, job.id)
    wait_until(lambda: studies.inspect_study_job(study, job.id), lambda seen: seen.state == "STARTED", 60, "it runs")
    studies.stop_study_job(study, job.id)
    assert ended(studies, study, job).state == "ABORTED"
    with pytest.raises(osparc.ApiException) as error:
        studies.get_study_job_outputs(study, job.id)
    assert error.value.status == 409
    studies.delete_study_job(study, job.id)


def test_clone_and_notes(studies, study):
    clone = studies.clone_study(study)
    assert isinstance(clone, osparc.Study) and clone.uid != study and clone.title == f"{TITLE} (Copy)"
    assert studies.get_study(clone.uid) == clone
    job = studies.create_study_job(clone.uid, osparc.JobInputs({}))
    notes = {"a": 1, "b": True, "c": "text", "d": 1.5}
    studies.replace_study_job_custom_metadata(clone.uid, job.id, osparc.JobMetadataUpdate(metadata=notes))
    assert studies.get_study_job_custom_metadata(clone.uid, job.id).metadata == notes
    studies.delete_study_job(clone.uid, job.id)


def test_a_file_that_is_wrong_is_refused_with_all_reasons(server, sleeper, tmp_path):
    study = json.loads((FOLDER / f"{TITLE}.json").read_text())
    study["steps"][0]["inputs"]["input_1"] = {"step": "thrid", "output": "output_1"}
    study["steps"][1]["inputs"]["input_2"] = {"step": "first", "output": "output_1"}
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(study))
    done = subprocess.run([server.binary, "solvers", "publish", path], env=server.env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "step `first`, input `input_1`: there is no step `thrid`; there is `first`, `second`" in done.stderr
    assert "step `second`, input `input_2`: takes integer, and output `output_1` of step `first` is a file" in done.stderr


def test_unknown_and_wrong_ids(ada, studies, study):
    nowhere = "00000000-0000-4000-8000-000000000000"
    for path, status in [(f"/v0/studies/{nowhere}", 404), ("/v0/studies/x", 422), (f"/v0/studies/{study}/jobs/{nowhere}:inspect", 404)]:
        answer = ada.http.request("POST" if ":" in path else "GET", path)
        assert answer.status_code == status, answer.text
        errors_of(answer)
