"""A job from upload to log with the Python client."""

import hashlib
import io
import os
import time
import zipfile

import solverd
import urllib3

SOLVER, VERSION = "simcore/services/comp/itis/sleeper", "2.1.6"
configuration = solverd.Configuration(os.environ["SOLVER_URL"], username=os.environ["SOLVER_KEY"], password=os.environ["SOLVER_SECRET"])

with solverd.ApiClient(configuration) as client:
    files, jobs = solverd.FilesApi(client), solverd.JobsApi(client)
    assert solverd.UsersApi(client).get_my_profile().role == solverd.UserRoleEnum.USER

    content = b"1"
    announced = solverd.UserFile(filename="seconds.txt", filesize=len(content), sha256_checksum=hashlib.sha256(content).hexdigest())
    upload = files.get_upload_links(announced)
    [link] = upload.upload_schema.urls
    sent = urllib3.request("PUT", link, body=content)
    part = solverd.UploadedPart(number=1, e_tag=sent.headers["ETag"].strip('"'))
    parts = solverd.FileUploadCompletionBody(parts=[part])
    file = files.complete_multipart_upload(upload.file_id, solverd.CompleteUpload(client_file=announced, uploaded_parts=parts))
    assert files.search_files_page(sha256_checksum=file.checksum).total == 1
    assert bytes(files.download_file(file.id)) == content
    whole = files.upload_file(("whole.txt", content))
    assert (whole.filename, whole.checksum) == ("whole.txt", file.checksum), whole

    values = {"input_1": file.to_dict(), "input_2": 0, "input_3": False, "input_4": None}
    job = jobs.create_solver_job(SOLVER, VERSION, solverd.JobInputs(values=values), hidden=False)
    jobs.replace_job_custom_metadata(SOLVER, VERSION, job.id, solverd.JobMetadataUpdate.from_dict({"metadata": {"mesh": 3, "name": "ü"}}))
    notes = jobs.get_job_custom_metadata(SOLVER, VERSION, job.id).metadata
    assert {key: value.actual_instance for key, value in notes.items()} == {"mesh": 3, "name": "ü"}
    try:
        jobs.get_job_outputs(SOLVER, VERSION, job.id)
        raise AssertionError("outputs before the job has run")
    except solverd.exceptions.ConflictException as error:
        assert error.data.code == solverd.ErrorCode.NO_OUTPUTS, error

    status = jobs.start_job(SOLVER, VERSION, job.id)
    deadline = time.monotonic() + 60
    while status.stopped_at is None and time.monotonic() < deadline:
        time.sleep(0.1)
        status = jobs.inspect_job(SOLVER, VERSION, job.id)
    assert status.state == solverd.RunningState.SUCCESS, status
    results = jobs.get_job_outputs(SOLVER, VERSION, job.id).results
    number = bytes(files.download_file(results["output_1"]["id"]))
    assert int(number) == results["output_2"], (number, results)
    lines = bytes(jobs.get_log_stream(SOLVER, VERSION, job.id)).decode().splitlines()
    assert lines and solverd.JobLog.from_json(lines[0]).job_id == job.id
    [name] = zipfile.ZipFile(io.BytesIO(bytes(jobs.get_job_output_logfile(SOLVER, VERSION, job.id)))).namelist()
    assert ".log" in name, name
    jobs.delete_job(SOLVER, VERSION, job.id)
print("done")
