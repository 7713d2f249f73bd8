"""One trivial job through the API beside the engine's own run of the same image: wall time, medians of N.

Both are measured alternately in the same run, so that a busy machine slows both; the ratio is what counts.
Usage: bench.py N IMAGE, with the service's address and credentials in the environment like oSPARC's client has them.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time

import httpx

times, image = int(sys.argv[1]), sys.argv[2]
key, version = image.rsplit(":", 1)
release = f"/v0/solvers/{key}/releases/{version}"
api = httpx.Client(
    base_url=os.environ["OSPARC_API_BASE_URL"], auth=(os.environ["OSPARC_API_KEY"], os.environ["OSPARC_API_SECRET"]), timeout=60
)


def through_the_api() -> float:
    """From the request that creates the job to the answer with its outputs."""
    began = time.perf_counter()
    created = api.post(f"{release}/jobs", json={"values": {"input_2": 0, "input_4": 0}})
    job = f"{release}/jobs/{created.raise_for_status().json()['id']}"
    api.post(f"{job}:start").raise_for_status()
    while (status := api.post(f"{job}:inspect").json())["stopped_at"] is None:
        time.sleep(0.002)
    assert status["state"] == "SUCCESS", status
    api.get(f"{job}/outputs").raise_for_status()
    took = time.perf_counter() - began
    api.delete(job).raise_for_status()
    return took


def by_the_engine(folder: str) -> float:
    """The same program with the same folders, and nothing around it."""
    mounts = [argument for name in ("inputs", "outputs") for argument in ("-v", f"{folder}/{name}:/{name}")]
    began = time.perf_counter()
    subprocess.run(["docker", "run", "--rm", "--network", "none", *mounts, image, "run"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


with tempfile.TemporaryDirectory() as folder:
    os.makedirs(f"{folder}/inputs")
    os.makedirs(f"{folder}/outputs")
    with open(f"{folder}/inputs/inputs.json", "w") as inputs:
        inputs.write('{"input_2": 0, "input_3": false, "input_4": 0}')
    pairs = [(through_the_api(), by_the_engine(folder)) for _ in range(times + 2)][2:]

ours, floor = (statistics.median(column) * 1000 for column in zip(*pairs))
print(f"one trivial job, medians of {times}:")
print(f"  through solverd's API         {ours:7.0f} ms   (create, start, wait, outputs)")
print(f"  docker run --rm, same image   {floor:7.0f} ms")
print(f"  ratio                         {ours / floor:7.2f}")
