"""A job from upload to log, with nothing but oSPARC's own Python client.

Where the service is and who asks comes from OSPARC_API_BASE_URL, OSPARC_API_KEY and OSPARC_API_SECRET.
"""

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

import osparc

SOLVER, VERSION = "simcore/services/comp/itis/sleeper", "2.1.6"


def say(what: str, *text) -> None:
    print(f"{what:>10} ", *text, flush=True)


def main(client: osparc.ApiClient, folder: Path) -> None:
    files, solvers, users = osparc.FilesApi(client), osparc.SolversApi(client), osparc.UsersApi(client)
    say("user", users.get_my_profile().login)

    seconds = folder / "seconds.txt"
    seconds.write_text("1")
    uploaded = files.upload_file(file=seconds)
    say("uploaded", uploaded.filename, uploaded.id)

    solver = solvers.get_solver_release(SOLVER, VERSION)
    say("solver", solver.id, solver.version, f"({solver.title})")
    for port in solvers.list_solver_ports(solver.id, solver.version):
        schema = port.content_schema or {}
        say(port.kind, f"{port.key:9} {schema.get('type', ''):8} {schema.get('title', '')}")

    inputs = osparc.JobInputs({"input_1": uploaded, "input_2": 1, "input_3": "false", "input_4": 1})
    job = solvers.create_job(solver.id, solver.version, inputs)
    say("job", job.id)

    status = solvers.start_job(solver.id, solver.version, job.id)
    while not status.stopped_at:
        say("progress", f"{status.progress:3}/100 {status.state.value}")
        time.sleep(0.5)
        status = solvers.inspect_job(solver.id, solver.version, job.id)
    say("progress", f"{status.progress:3}/100 {status.state.value}")
    if status.state != "SUCCESS":
        sys.exit(f"The job ended as {status.state.value}: " + "\n".join(error.msg for error in status.errors or []))

    results = solvers.get_job_outputs(solver.id, solver.version, job.id).results
    for name, value in results.items():
        say("result", name, "=", f"{value.filename} {value.id}" if isinstance(value, osparc.File) else value)
    number = Path(files.download_file(file_id=results["output_1"].id, destination_folder=folder))
    say("downloaded", results["output_1"].filename, "which says", number.read_text().strip())

    with ZipFile(solvers.get_job_output_logfile(solver.id, solver.version, job.id)) as archive:
        archive.extractall(folder)
    [log] = folder.glob("*.log*")
    say("log", log.name)
    print(log.read_text().rstrip())


def reason(error: Exception) -> str:
    """What the service said, where it said something."""
    if not isinstance(error, osparc.ApiException):
        return f"{type(error).__name__}: {error}"
    try:
        errors = json.loads(error.body)["errors"]
    except (KeyError, TypeError, ValueError):
        errors = [error.body]
    return f"{error.status} {error.reason}: " + "; ".join(str(each) for each in errors)


if __name__ == "__main__":
    try:
        with osparc.ApiClient() as client, TemporaryDirectory() as folder:
            main(client, Path(folder))
    except Exception as error:
        sys.exit(f"The tutorial failed. {reason(error)}")
