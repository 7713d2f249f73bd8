"""What the tests share: the server under test, a client of it, a job of that client, and waiting."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import httpx
import osparc
import pytest

HERE = Path(__file__).parent
REPO = HERE.parent.parent
SLEEPER = "simcore/services/comp/itis/sleeper"
SLEEPER_VERSIONS = ["2.0.2", "2.1.1", "2.1.6"]
FINAL = {"SUCCESS", "FAILED", "ABORTED"}
QUEUED = {"PUBLISHED", "PENDING", "WAITING_FOR_RESOURCES"}


def wait_until(observe, accept, seconds, what):
    """Calls `observe` until `accept` holds for what it returns, and returns that; fails with the last value seen."""
    deadline = time.monotonic() + seconds
    while not accept(seen := observe()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds} s until {what}; last seen:\n{seen}")
        time.sleep(0.05)
    return seen


def errors_of(response) -> str:
    """Checks the error envelope of an httpx response or an `ApiException` and returns its errors as one text."""
    body = json.loads(response.body if isinstance(response, osparc.ApiException) else response.text)
    assert isinstance(body["errors"], list) and body["errors"], body
    support_id = body["support_id"]
    assert support_id is None or re.fullmatch(r"OEC:[0-9a-fA-F]{12}-\d{13,14}", support_id), body
    return "\n".join(error if isinstance(error, str) else json.dumps(error) for error in body["errors"])


@contextmanager
def refused(*statuses):
    """The block must raise an `ApiException` with one of the statuses and the error envelope as body."""
    with pytest.raises(osparc.ApiException) as info:
        yield info
    assert info.value.status in statuses, info.value
    errors_of(info.value)


def docker(*arguments, stdin=None) -> str:
    done = subprocess.run(["docker", *arguments], input=stdin, capture_output=True, text=True)
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr}"
    return done.stdout


class Server:
    """A `solverd serve` of our own on free ports and an empty data directory, and its command line."""

    EMAIL, KEY, SECRET = "ada@example.org", "suite-key", "suite-secret"

    def __init__(self, folder: Path, **settings):
        folder.mkdir(exist_ok=True)
        self.binary = Path(os.environ.get("SOLVERD_BIN") or REPO / "target/debug/solverd").resolve()
        self.data = folder / "data"
        self.out, self.err = folder / "stdout.txt", folder / "stderr.txt"
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("SOLVERD_", "OSPARC_"))} | {
            "SOLVERD_LISTEN": "127.0.0.1:0",
            "SOLVERD_S3_LISTEN": "127.0.0.1:0",
            "SOLVERD_DATA_DIR": str(self.data),
            "SOLVERD_WEBHOOK_PRIVATE_ADDRESSES": "true",
            "SOLVERD_BOOTSTRAP_EMAIL": self.EMAIL,
            "SOLVERD_BOOTSTRAP_KEY": self.KEY,
            "SOLVERD_BOOTSTRAP_SECRET": self.SECRET,
        } | settings

    def start(self):
        assert self.binary.is_file(), f"no server at {self.binary}: build it, or name it in SOLVERD_BIN"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen([self.binary, "serve"], env=self.env, stdout=out, stderr=err, cwd=self.out.parent)
        ready = re.compile(r"^solverd ready at (http://127\.0\.0\.1:\d+)$", re.MULTILINE)
        wait_until(
            lambda: f"exit code {self.process.poll()}\n{self.out.read_text()}\n{self.log_tail()}",
            lambda _: ready.search(self.out.read_text()) or self.process.poll() is not None,
            30,
            "the server says that it is ready",
        )
        found = ready.search(self.out.read_text())
        assert found, f"the server ended with {self.process.poll()}:\n{self.out.read_text()}\n{self.log_tail()}"
        self.url = found[1]

    def stop(self):
        """Ends the server by SIGTERM; it must go in time, without an error, and leave neither containers nor working files."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = f"none within 30 s of SIGTERM, killed {self.process.wait()}"
        left = {"exit code": code, "containers": self.containers(), "work": self.work()}
        assert left == {"exit code": 0, "containers": [], "work": []}, f"{left}\n{self.log_tail()}"

    @property
    def instance(self) -> str:
        return (self.data / "instance").read_text().strip()

    def s3(self) -> dict[str, str]:
        """Settings of a server that uses this one's object store. Its links say where that is."""
        announced = {"filename": "a", "filesize": 1, "sha256_checksum": "0" * 64}
        [link] = self.client().http.post("/v0/files/content", json=announced).raise_for_status().json()["upload_schema"]["urls"]
        key, secret = (self.data / "s3-credentials").read_text().strip().split(":")
        endpoint = link[: link.index("/solverd/")]
        return {"SOLVERD_S3_ENDPOINT": endpoint, "SOLVERD_S3_ACCESS_KEY_ID": key, "SOLVERD_S3_SECRET_ACCESS_KEY": secret}

    def log_tail(self) -> str:
        lines = self.err.read_text(errors="replace").splitlines() if self.err.exists() else []
        return "\n".join(["-- server's stderr --", *lines[-40:]])

    def run(self, *arguments) -> str:
        done = subprocess.run([self.binary, *arguments], env=self.env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"solverd {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def containers(self) -> list[str]:
        """Jobs that have a container, running or not, with a folder of this server mounted."""
        ids = docker("ps", "--all", "--quiet", "--filter", "label=solverd.job").split()
        # One that goes away between the two commands is not left over.
        shown = subprocess.run(["docker", "inspect", *ids], capture_output=True, text=True).stdout if ids else "[]"
        ours = [found for found in json.loads(shown) if str(self.data) in json.dumps(found["HostConfig"]) + json.dumps(found["Mounts"])]
        return sorted(found["Config"]["Labels"]["solverd.job"] for found in ours)

    def work(self) -> list[str]:
        folder = self.data / "work"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []

    def client(self, key=KEY, secret=SECRET) -> "Client":
        return Client(self.url, key, secret)

    def new_user(self, email) -> "Client":
        self.run("users", "add", email)
        credentials = json.loads(self.run("keys", "create", email, "--json"))
        return self.client(credentials["key"], credentials["secret"])

    def script(self, name, **env) -> subprocess.CompletedProcess:
        """Runs one of the demo programs as a user would: this Python, and the three variables in the environment."""
        access = {"OSPARC_API_BASE_URL": self.url, "OSPARC_API_KEY": self.KEY, "OSPARC_API_SECRET": self.SECRET}
        command = [sys.executable, HERE / name]
        return subprocess.run(command, env=self.env | access | env, capture_output=True, text=True, timeout=240)


class Client:
    """One user: the osparc client's APIs, and `http` for what that client cannot say."""

    def __init__(self, url, key, secret):
        self.key, self.secret = key, secret
        api = osparc.ApiClient(osparc.Configuration(host=url, username=key, password=secret))
        self.files, self.solvers, self.users = osparc.FilesApi(api), osparc.SolversApi(api), osparc.UsersApi(api)
        self.wallets, self.credits = osparc.WalletsApi(api), osparc.CreditsApi(api)
        # A kept connection may be closed by the server in the moment that we use it again.
        fresh = httpx.Limits(max_keepalive_connections=0)
        self.http = httpx.Client(base_url=url, auth=(key, secret), timeout=30, limits=fresh)

    def job(self, solver=SLEEPER, version="2.1.6", **values) -> "Job":
        return Job(self, solver, version, self.solvers.create_job(solver, version, osparc.JobInputs(values)))

    def upload(self, folder: Path, name: str, content: bytes | str) -> osparc.File:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return self.files.upload_file(file=path)

    def download(self, file: osparc.File, folder: Path) -> Path:
        return Path(self.files.download_file(file_id=str(file.id), destination_folder=folder))


@dataclass
class Job:
    client: Client
    solver: str
    version: str
    created: osparc.Job

    @property
    def id(self) -> str:
        return str(self.created.id)

    @property
    def at(self) -> tuple[str, str, str]:
        """The arguments with which every call of the osparc client names a job."""
        return self.solver, self.version, self.id

    def path(self, suffix="", slash="%2F") -> str:
        key = quote(self.solver, safe="").replace("%2F", slash)
        return f"/v0/solvers/{key}/releases/{self.version}/jobs/{self.id}{suffix}"

    def start(self) -> "Job":
        self.client.solvers.start_job(*self.at)
        return self

    def inspect(self) -> osparc.JobStatus:
        return self.client.solvers.inspect_job(*self.at)

    def until(self, *states, seconds=60) -> osparc.JobStatus:
        """Waits for one of the states; another final state ends the waiting, and the test, at once."""
        status = wait_until(self.inspect, lambda seen: seen.state in FINAL.union(states), seconds, f"job {self.id} is {states}")
        assert status.state in states, f"job {self.id} is {status.state.value}: {[error.msg for error in status.errors or []]}"
        return status

    def run(self) -> osparc.JobStatus:
        return self.start().until("SUCCESS")

    def stop(self) -> osparc.JobStatus:
        return self.client.solvers.stop_job(*self.at)

    def outputs(self) -> dict:
        answer = self.client.solvers.get_job_outputs(*self.at)
        assert answer.job_id == self.id
        return answer.results

    def log_file(self) -> tuple[str, str]:
        """Name and text of the one log in the job's log zip."""
        path = self.client.solvers.get_job_output_logfile(*self.at)
        with zipfile.ZipFile(path) as archive:
            [name] = archive.namelist()
            text = archive.read(name).decode()
        path.unlink()
        return name, text

    def log_lines(self) -> list[str]:
        return self.log_file()[1].splitlines()

    @contextmanager
    def log_stream(self):
        """The lines of the log stream as they come, each parsed and checked; the URL has raw slashes."""
        with self.client.http.stream("GET", self.path("/logstream", slash="/")) as response:
            assert response.status_code == 200, response.read()
            assert response.headers["content-type"].startswith("application/x-ndjson")
            yield map(self._log_item, response.iter_lines())

    def _log_item(self, line: str) -> dict:
        item = json.loads(line)
        assert item["job_id"] == self.id, line
        assert item["log_level"] in (10, 20, 30, 40), line
        assert item["messages"] and all(isinstance(message, str) for message in item["messages"]), line
        return item

    def read_log_stream(self) -> list[dict]:
        with self.log_stream() as items:
            return list(items)
