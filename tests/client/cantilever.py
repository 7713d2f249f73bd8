"""A finite-element job: a steel beam, bent by CalculiX, against what beam theory says about it.

Where the service is and who asks comes from OSPARC_API_BASE_URL, OSPARC_API_KEY and OSPARC_API_SECRET.
"""

import json
import sys
import time
from pathlib import Path

import osparc
from tutorial import reason, say

FOLDER = Path(__file__).parents[2] / "solvers/calculix"
KEY = json.loads((FOLDER / "metadata.json").read_text())["key"]
EXAMPLE = json.loads((FOLDER / "cantilever.json").read_text())


def main(client: osparc.ApiClient) -> None:
    files, solvers = osparc.FilesApi(client), osparc.SolversApi(client)
    solver = solvers.list_solver_releases(KEY)[-1]
    say("solver", solver.id, solver.version, f"({solver.title})")
    model = files.upload_file(file=FOLDER / EXAMPLE["deck"])
    say("uploaded", model.filename, model.id)

    inputs = osparc.JobInputs({"model": model, **EXAMPLE["inputs"]})
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
        if isinstance(value, osparc.File):
            path = Path(files.download_file(file_id=value.id))
            say("downloaded", f"{value.filename}, {path.stat().st_size} bytes")
            path.unlink()

    print(f"\n{'':18} {'computed':>10} {'theory':>10}      {'off by':>8}  {'allowed':>7}")
    wrong = []
    for name, expected in EXAMPLE["expected"].items():
        computed, theory, tolerance = results[name], expected["theory"], expected["relative_tolerance"]
        off = computed / theory - 1
        print(f"{name:18} {computed:10.4f} {theory:10.4f} {expected['unit']:4} {off:+8.2%}  {tolerance:7.2%}")
        if not abs(off) <= tolerance:
            wrong.append(name)
    if wrong:
        sys.exit(f"Not what theory says: {', '.join(wrong)}")


if __name__ == "__main__":
    try:
        with osparc.ApiClient() as client:
            main(client)
    except Exception as error:
        sys.exit(f"The cantilever failed. {reason(error)}")
