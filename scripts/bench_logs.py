"""How long a printed line takes to its readers: from the solver's own clock to its arrival, on one machine.

Usage: bench_logs.py image    builds the solver that prints its clock, and prints the image's name
       bench_logs.py          runs it, with the service's address and credentials in the environment like oSPARC's client has them
"""

import json
import os
import re
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

KEY, VERSION = "simcore/services/comp/bench/clock", "1.0.0"
PORTS = {
    "lines": {"type": "integer", "description": "How many lines to print."},
    "pause": {"type": "number", "description": "Seconds between two lines."},
}
# The clock is bash's own: no process is started for a line.
SCRIPT = """
value() { sed -E "s/.*\\"$1\\": ?([0-9.]+).*/\\1/" /inputs/inputs.json; }
lines=$(value lines) pause=$(value pause)
exec 3<> <(:)
for ((i = 0; i < lines; i++)); do
    echo "line $i at $EPOCHREALTIME"
    read -r -t "$pause" -u 3
done
exit 0
"""


def build() -> str:
    about = {
        "key": KEY, "version": VERSION, "type": "computational", "integration-version": "1.0.0", "name": "clock",
        "description": "Prints its clock.", "contact": "nobody@example.org", "authors": [], "outputs": {},
        "inputs": {name: port | {"label": name} for name, port in PORTS.items()},
    }  # fmt: skip
    labels = [f"--label=io.simcore.{field}={json.dumps({field: value})}" for field, value in about.items()]
    recipe = f"FROM debian:bookworm-slim\nENTRYPOINT {json.dumps(['bash', '-c', SCRIPT])}\n"
    image = f"{KEY}:{VERSION}"
    # Without BuildKit the older builder does.
    builder = {} if subprocess.run(["docker", "buildx", "version"], capture_output=True).returncode == 0 else {"DOCKER_BUILDKIT": "0"}
    command = ["docker", "build", "--quiet", "--tag", image, *labels, "-"]
    subprocess.run(command, input=recipe, text=True, check=True, stdout=subprocess.DEVNULL, env=os.environ | builder)
    return image


def client() -> httpx.Client:
    access = os.environ["OSPARC_API_KEY"], os.environ["OSPARC_API_SECRET"]
    return httpx.Client(base_url=os.environ["OSPARC_API_BASE_URL"], auth=access, timeout=60)


def read(path: str) -> list[tuple[int, float]]:
    """The number of each line that a stream brings, and how long it took."""
    seen, rest = [], b""
    with client() as api, api.stream("GET", path) as answer:
        answer.raise_for_status()
        for chunk in answer.iter_raw():
            now = time.time()
            rest += chunk
            whole, _, rest = rest.rpartition(b"\n")
            seen += [(int(number), now - float(at)) for number, at in re.findall(rb"line (\d+) at ([\d.]+)", whole)]
    return seen


def measure(lines: int, pause: float, readers: int) -> None:
    release = f"/v0/solvers/{KEY}/releases/{VERSION}"
    with client() as api, ThreadPoolExecutor(2 * readers) as pool:
        job = api.post(f"{release}/jobs", json={"values": {"lines": lines, "pause": pause}}).raise_for_status().json()["id"]
        streams = {"log stream": f"{release}/jobs/{job}/logstream", "events": f"/v0/jobs/{job}/events"}
        runs = {name: [pool.submit(read, path) for _ in range(readers)] for name, path in streams.items()}
        api.post(f"{release}/jobs/{job}:start").raise_for_status()
        print(f"{lines} lines, {1000 * pause:.0f} ms between them, {readers} readers of each stream:")
        for name, futures in runs.items():
            seen = [future.result() for future in futures]
            late = read(streams[name])
            assert all([number for number, _ in lines_of] == list(range(lines)) for lines_of in [*seen, late]), "a line is missing"
            took = [1000 * seconds for lines_of in seen for _, seconds in lines_of]
            p50, p95 = statistics.median(took), statistics.quantiles(took, n=20)[-1]
            print(f"  {name:10}  p50 {p50:5.1f} ms   p95 {p95:5.1f} ms   longest {max(took):5.1f} ms")


if sys.argv[1:] == ["image"]:
    print(build())
else:
    measure(500, 0.02, 1)
    measure(500, 0.02, 8)
    measure(5000, 0.001, 2)
