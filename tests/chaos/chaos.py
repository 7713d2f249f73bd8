"""Random faults under a load of jobs, and the balance: `chaos.py --cycles 20 --seed 7`.

A service with an object store, a database and a container engine of its own gets jobs from several users at once, while one part after
the other is killed, restarted, taken away or filled up. Every job whose start was acknowledged must reach the right final state, with every line of
its log once and in order; no container may start twice, and nothing may be left. Everything is real: the object store is a second
solverd, the engine a second dockerd, the database SQLite or the Postgres server of `scripts/postgres.sh` (CHAOS_POSTGRES_URL).

A second engine and a full disk need root: without it, the engine at hand is used and these faults are left out, which the balance says.
"""

import argparse
import collections
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import traceback
import uuid
import zipfile
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx

REPO = Path(__file__).parent.parent.parent
CHAOS = "simcore/services/comp/test/chaos"
FINAL = {"SUCCESS", "FAILED", "ABORTED"}
ROOT = os.geteuid() == 0
OWN_ENGINE = ROOT and all(shutil.which(program) for program in ("dockerd", "containerd"))

# The values stand in one line of JSON; a job's kind, its number of ticks and its nonce contain no quotes.
SOLVER = r"""#!/bin/sh
value() { sed -n 's/.*"'$1'": *"\{0,1\}\([^",}]*\).*/\1/p' /inputs/inputs.json; }
kind=$(value kind) ticks=$(value ticks) nonce=$(value nonce)
echo "begin $nonce"
i=0
while [ $i -lt $ticks ]; do i=$((i + 1)); echo "tick $i"; [ "$kind" != burst ] || seq 1 500; sleep 0.2; done
echo "$nonce $(cat /inputs/seed.txt)" >/outputs/proof.txt && echo "{\"ticks\": $ticks}" >/outputs/outputs.json || exit 9
echo "end $nonce"
[ "$kind" != fail ] || exit 3
"""


def printed_by(kind: str, ticks: int, nonce: str) -> list[str]:
    lines = [f"begin {nonce}"]
    for tick in range(1, ticks + 1):
        lines += [f"tick {tick}"] + ([str(number) for number in range(1, 501)] if kind == "burst" else [])
    return [*lines, f"end {nonce}"]


def say(text: str):
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def until(what: str, done, seconds: float, pause=0.05):
    """Waits for a condition; a `done` that raises is not yet done."""
    end = time.monotonic() + seconds
    last = None
    while time.monotonic() < end:
        try:
            last = done()
            if last:
                return last
        except (httpx.HTTPError, OSError, subprocess.SubprocessError) as error:
            last = error
        time.sleep(pause)
    raise AssertionError(f"waited {seconds} s for {what}; last seen: {last!r}")


class Engine:
    """A dockerd of our own, or, without root, the one at hand."""

    def __init__(self, folder: Path):
        self.folder, self.process = folder / "engine", None
        self.env = dict(os.environ)
        if OWN_ENGINE:
            self.folder.mkdir()
            self.env["DOCKER_HOST"] = f"unix://{self.folder / 'docker.sock'}"
            # Beside the engine, as a system's supervisor runs it: it outlives the engine, and so do the containers.
            self.containerd = self.spawn("containerd", "--address", self.folder / "containerd.sock", "--root", self.folder / "containerd",
                                         "--state", self.folder / "state", "--config", "/dev/null")  # fmt: skip
            until("containerd's socket", (self.folder / "containerd.sock").exists, 30)
            self.start()

    def spawn(self, *command) -> subprocess.Popen:
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen([*map(str, command)], stdout=log, stderr=log, start_new_session=True)

    def start(self):
        (self.folder / "pid").unlink(missing_ok=True)
        # In a network of its own: without a bridge, it would remove that of the engine at hand.
        self.process = self.spawn(
            "unshare", "--net", "dockerd", "--host", self.env["DOCKER_HOST"], "--data-root", self.folder / "data", "--exec-root", self.folder / "run",
            "--containerd", self.folder / "containerd.sock", "--pidfile", self.folder / "pid",
            "--bridge=none", "--iptables=false", "--ip6tables=false",
        )  # fmt: skip
        until("the engine to answer", lambda: self("version", "--format", "{{.Server.Version}}"), 60)

    def end(self, sign: int):
        self.process.send_signal(sign)
        self.process.wait(60)

    def __call__(self, *arguments, stdin: bytes | None = None) -> str:
        done = subprocess.run(["docker", *map(str, arguments)], env=self.env, input=stdin, capture_output=True, timeout=60)
        done.check_returncode()
        return done.stdout.decode()

    def close(self):
        if not self.process:
            return
        if self.process.poll() is not None:
            self.start()
        for container in self("ps", "--all", "--quiet").split():
            self("rm", "--force", container)
        self.end(signal.SIGTERM)
        self.containerd.terminate()
        self.containerd.wait(60)
        # An engine that was killed leaves it mounted.
        while subprocess.run(["umount", self.folder / "data"], stderr=subprocess.DEVNULL).returncode == 0:
            pass

    def build(self):
        """The solver's image: a static busybox and the script."""
        ports = {
            "inputs": {
                "kind": {"type": "string"}, "ticks": {"type": "integer"}, "nonce": {"type": "string"},
                "seed": {"type": "data:text/plain", "fileToKeyMap": {"seed.txt": "seed"}},
            },
            "outputs": {"ticks": {"type": "integer"}, "proof": {"type": "data:text/plain", "fileToKeyMap": {"proof.txt": "proof"}}},
        }  # fmt: skip
        about = {"key": CHAOS, "version": "1.0.0", "type": "computational", "name": "chaos", "description": "Ticks.",
                 "integration-version": "1.0.0", "contact": "ada@example.org", "authors": [],
                 **{side: {key: {"label": key, "description": key, **port} for key, port in some.items()} for side, some in ports.items()}}  # fmt: skip
        share = {"NanoCPUs": 2 * 10**8, "MemoryBytes": 32 * 2**20}
        labels = {f"io.simcore.{field}": json.dumps({field: value}) for field, value in about.items()}
        resources = [{"name": "Resources", "type": "Resources", "value": {"Limits": share, "Reservations": share}}]
        labels["simcore.service.settings"] = json.dumps(resources)
        busybox = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for name, content in {"bin/busybox": busybox, "bin/solver": SOLVER.encode()}.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(content), 0o755
                tar.addfile(entry, io.BytesIO(content))
            for applet in ["sh", "sed", "seq", "sleep", "cat", "echo"]:
                entry = tarfile.TarInfo(f"bin/{applet}")
                entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(entry)
        changes = ['ENTRYPOINT ["/bin/sh", "/bin/solver"]', *(f"LABEL {name}={json.dumps(value)}" for name, value in labels.items())]
        self("import", *(f"--change={change}" for change in changes), "-", f"{CHAOS}:1.0.0", stdin=archive.getvalue())


class Program:
    """A `solverd serve` that can be killed and started again with the same ports and data."""

    def __init__(self, name: str, folder: Path, env: dict):
        self.name, self.folder, self.env, self.url, self.lives = name, folder, env, None, 0
        folder.mkdir(exist_ok=True)
        self.binary = Path(os.environ.get("SOLVERD_BIN") or REPO / "target/debug/solverd").resolve()

    def start(self):
        self.lives += 1
        out = self.folder / f"stdout.{self.lives}"
        with out.open("wb") as stdout, (self.folder / "stderr").open("ab") as stderr:
            self.process = subprocess.Popen([self.binary, "serve"], env=self.env, stdout=stdout, stderr=stderr, start_new_session=True)
        found = until(
            f"{self.name} to be ready",
            lambda: re.search(r"^solverd ready at (\S+)$", out.read_text(), re.MULTILINE) or self.process.poll() is not None,
            60,
            0.01,
        )
        if found is True:
            return False
        self.url = found[1]
        # The next life is found at the same place.
        self.env["SOLVERD_LISTEN"] = urlsplit(self.url).netloc
        return True

    def end(self, sign: int):
        if self.process.poll() is None:
            self.process.send_signal(sign)
            self.process.wait(60)

    def run(self, *arguments) -> str:
        return subprocess.run([self.binary, *arguments], env=self.env, check=True, capture_output=True, text=True, timeout=60).stdout


class Postgres:
    """The private server of scripts/postgres.sh, with a database of our own."""

    def __init__(self, url: str):
        self.home = Path((REPO / ".cache/postgres").read_text().strip())
        name = f"chaos_{uuid.uuid4().hex[:12]}"
        for statement in [f"CREATE DATABASE {name}", f"ALTER DATABASE {name} SET synchronous_commit = on"]:
            # An immediate stop of a server that answers before it has written loses what it has acknowledged.
            self.command("psql", "--quiet", url, "--command", statement)
        self.url = url.rsplit("/", 1)[0] + f"/{name}"

    def command(self, program: str, *arguments):
        programs = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
        command = [programs[-1] if programs else program, *map(str, arguments)]
        if ROOT:
            command = ["runuser", "-u", "postgres", "--", *command]
        subprocess.run(command, cwd="/", check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, timeout=60)

    def end(self):
        self.command("pg_ctl", "stop", "-m", "immediate", "-D", self.home / "data")

    def start(self):
        options = (self.home / "data/postmaster.opts").read_text()
        arguments = re.findall(r'"([^"]*)"', options)
        quoted = " ".join(f"'{argument}'" for argument in arguments if argument != "-D" and not argument.endswith("/data"))
        self.command("pg_ctl", "start", "-w", "-D", self.home / "data", "-l", self.home / "log", "-o", quoted)


class World:
    """All parts, and what was done to them."""

    def __init__(self, folder: Path, postgres_url: str | None, seed: int, outage: float):
        self.folder, self.random, self.outage = folder, random.Random(seed), outage
        self.engine = Engine(folder)
        self.engine.build()
        self.postgres = Postgres(postgres_url) if postgres_url else None
        base = {name: value for name, value in self.engine.env.items() if not name.startswith(("SOLVERD_", "OSPARC_"))}
        self.storage = Program("the object store", folder / "storage", base | {
            "SOLVERD_LISTEN": "127.0.0.1:0", "SOLVERD_S3_LISTEN": "127.0.0.1:0", "SOLVERD_DATA_DIR": str(folder / "storage/data"),
        })  # fmt: skip
        # It runs no jobs, and must not depend on the engine that is taken away.
        self.storage.env.pop("DOCKER_HOST", None)
        self.storage.env |= {name: value for name, value in os.environ.items() if name == "DOCKER_HOST"}
        assert self.storage.start(), "the object store does not start"
        key, secret = "chaos-key", "chaos-secret"
        self.data = folder / "data"
        self.data.mkdir()
        if ROOT:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m,mode=700", "tmpfs", self.data], check=True)
        bootstrap = {"SOLVERD_BOOTSTRAP_EMAIL": "ada@example.org", "SOLVERD_BOOTSTRAP_KEY": key, "SOLVERD_BOOTSTRAP_SECRET": secret}
        access, s3_secret = (folder / "storage/data/s3-credentials").read_text().strip().split(":")
        self.service = Program("the service", folder / "service", base | bootstrap | {
            "SOLVERD_LISTEN": "127.0.0.1:0", "SOLVERD_DATA_DIR": str(self.data), "SOLVERD_S3_ENDPOINT": self.s3_endpoint(),
            "SOLVERD_S3_ACCESS_KEY_ID": access, "SOLVERD_S3_SECRET_ACCESS_KEY": s3_secret, "SOLVERD_LOG": "warn",
        })  # fmt: skip
        if self.postgres:
            self.service.env["SOLVERD_DATABASE_URL"] = self.postgres.url
        assert self.service.start(), f"the service does not start: {(folder / 'service/stderr').read_text()}"
        self.service.run("solvers", "publish", f"{CHAOS}:1.0.0")
        self.auth = (key, secret)
        self.windows: list[tuple[str, float, float]] = []
        self.removed: set[str] = set()
        self.done = threading.Event()

    def s3_endpoint(self) -> str:
        """Where the object store's S3 listens: its links say so. The next life is found there, too."""
        created = re.search(r"key\s+(\S+).*?secret\s+(\S+)", (self.storage.folder / "stdout.1").read_text(), re.DOTALL | re.IGNORECASE)
        assert created, (self.storage.folder / "stdout.1").read_text()
        announced = {"filename": "a", "filesize": 1, "sha256_checksum": "0" * 64}
        answer = httpx.post(f"{self.storage.url}/v0/files/content", json=announced, auth=(created[1], created[2]))
        endpoint = urlsplit(answer.raise_for_status().json()["upload_schema"]["urls"][0]).netloc
        self.storage.env["SOLVERD_S3_LISTEN"] = endpoint
        return f"http://{endpoint}"

    def faults(self) -> dict:
        faults = {
            "kill -9 of the service": self.kill_service, "restart of the service": self.restart_service,
            "container removed by hand": self.remove_container, "object store away": self.storage_away,
        }  # fmt: skip
        if ROOT:
            faults["disk full"] = self.fill_disk
        if OWN_ENGINE:
            faults |= {"kill -9 of the engine": self.kill_engine, "restart of the engine": self.restart_engine}
        if self.postgres:
            faults["database away"] = self.database_away
        return faults

    def pause(self, least: float, most: float):
        self.done.wait(self.random.uniform(least, most))

    def away(self):
        self.pause(0.2, self.outage)

    def revive(self):
        """As a supervisor would: again and again, until it lives."""
        until("the service to start again", self.service.start, 120)

    def kill_service(self):
        self.service.end(signal.SIGKILL)
        self.pause(0, 1.5)
        self.revive()

    def restart_service(self):
        self.service.end(signal.SIGTERM)
        self.pause(0, 1.5)
        self.revive()

    def remove_container(self):
        running = self.engine("ps", "--format", '{{.ID}} {{.Label "solverd.job"}}', "--filter", f"label=solverd.instance={self.instance()}")
        if running:
            container, job = self.random.choice(running.splitlines()).split()
            self.removed.add(job)
            self.engine("rm", "--force", container)

    def storage_away(self):
        self.storage.end(signal.SIGKILL)
        self.away()
        assert self.storage.start(), "the object store does not start again"

    def database_away(self):
        self.postgres.end()
        self.away()
        self.postgres.start()

    def kill_engine(self):
        self.engine.end(signal.SIGKILL)
        self.away()
        self.engine.start()

    def restart_engine(self):
        self.engine.end(signal.SIGTERM)
        self.away()
        self.engine.start()

    def fill_disk(self):
        full = self.data / "full"
        with full.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 20))
            except OSError:
                pass
        self.away()
        full.unlink()

    def instance(self) -> str:
        return (self.data / "instance").read_text().strip()

    def left(self) -> dict:
        """What jobs have left behind."""
        containers = self.engine("ps", "--all", "--format", "{{.ID}} {{.Names}}", "--filter", f"label=solverd.instance={self.instance()}")
        work = self.data / "work"
        found = {"containers": containers.splitlines(), "folders": sorted(path.name for path in work.iterdir()) if work.exists() else []}
        if OWN_ENGINE:
            found["volumes"] = self.engine("volume", "ls", "--quiet").split()
            networks = self.engine("network", "ls", "--format", "{{.Name}}").split()
            found["networks"] = sorted(set(networks) - {"none", "host", "bridge"})
        return {name: some for name, some in found.items() if some}

    def close(self):
        for program in (self.service, self.storage):
            program.end(signal.SIGTERM)
        if not OWN_ENGINE:
            for container in self.left().get("containers", []):
                self.engine("rm", "--force", container.split()[0])
        self.engine.close()
        if ROOT:
            subprocess.run(["umount", "--lazy", self.data], check=True)


class User(threading.Thread):
    """Creates jobs one after the other, follows each to its end and judges it."""

    def __init__(self, world: World, number: int, seed: int):
        super().__init__(name=f"user {number}", daemon=True)
        self.world, self.random = world, random.Random(seed * 1000 + number)
        self.balance: collections.Counter = collections.Counter()
        self.wrong: list[str] = []
        self.seed_text = f"seed of user {number}"

    def call(self, method: str, path: str, **arguments) -> httpx.Response:
        """A request that is repeated while the service is away or says that it, or a part of it, is."""
        def attempt():
            answer = self.http.request(method, self.world.service.url + path, **arguments)
            return answer if answer.status_code < 500 and answer.status_code != 429 else None
        return until(f"{method} {path}", attempt, 180 + self.world.outage, 0.1)

    def run(self):
        try:
            with httpx.Client(auth=self.world.auth, timeout=60, limits=httpx.Limits(max_keepalive_connections=0)) as self.http:
                self.seed_file = self.upload()
                while not self.world.done.is_set():
                    self.one_job()
        except Exception:
            self.wrong.append(traceback.format_exc())

    def upload(self) -> dict:
        content = self.seed_text.encode()
        announced = {"filename": "seed.txt", "filesize": len(content), "sha256_checksum": hashlib.sha256(content).hexdigest()}
        plan = self.call("POST", "/v0/files/content", json=announced).json()
        e_tag = httpx.put(plan["upload_schema"]["urls"][0], content=content).raise_for_status().headers["etag"].strip('"')
        path = f"/v0/files/{plan['file_id']}:complete"
        body = {"client_file": announced, "uploaded_parts": {"parts": [{"number": 1, "e_tag": e_tag}]}}
        return self.call("POST", path, json=body).raise_for_status().json()

    def one_job(self):
        kind = self.random.choices(["tick", "burst", "fail", "stop", "delete"], [6, 2, 1, 2, 1])[0]
        ticks, nonce = self.random.choice([0, 0, 1, 3, 8, 20]), uuid.uuid4().hex
        values = {"kind": kind, "ticks": ticks, "nonce": nonce, "seed": self.seed_file}
        jobs = f"/v0/solvers/{quote(CHAOS, safe='')}/releases/1.0.0/jobs"
        created = self.call("POST", jobs, json={"values": values}, headers={"Idempotency-Key": nonce})
        assert created.status_code in (200, 201), created.text
        job = created.json()["id"]
        path = f"{jobs}/{job}"
        begun = time.monotonic()
        started = self.call("POST", f"{path}:start")
        assert started.status_code in (200, 202), started.text
        if kind in ("stop", "delete"):
            self.world.done.wait(self.random.uniform(0, 4))
            asked = self.call("POST", f"{path}:stop") if kind == "stop" else self.call("DELETE", path)
            assert asked.status_code in (200, 204) or kind == "delete" and asked.status_code == 404, asked.text
            if kind == "delete":
                gone = self.call("GET", path)
                assert gone.status_code == 404, gone.text
                self.balance["deleted"] += 1
                return
        status = until(f"the end of job {job}", lambda: self.final(path), 240 + 3 * self.world.outage, 0.2)
        self.judge(kind, ticks, nonce, path, status, begun)

    def final(self, path: str) -> dict | None:
        answer = self.call("POST", f"{path}:inspect")
        assert answer.status_code == 200, answer.text
        status = answer.json()
        return status if status["state"] in FINAL else None

    def excuses(self, job: str, begun: float) -> set[str]:
        """The kinds of failure that what was done to the job explains."""
        excuses = {"runtime.lost"} if job in self.world.removed else set()
        for fault, first, last in self.world.windows:
            if last < begun - 5:
                continue
            if "engine" in fault:
                excuses |= {"runtime.engine", "runtime.lost", "killed"}
            elif fault == "disk full":
                excuses |= {"runtime.machine", "runtime.engine", "runtime.storage", "runtime.input", "ServiceBadFormattedOutputError", "disk"}
        return excuses

    def judge(self, kind: str, ticks: int, nonce: str, path: str, status: dict, begun: float):
        job, state = status["job_id"], status["state"]
        errors = status.get("errors") or []
        error = (errors[0]["type"], errors[0]["msg"]) if errors else ("", "")
        excuses = self.excuses(job, begun)
        # Of its own accord the solver exits with 3 only.
        signalled = "killed" in excuses and re.search(r"code (137|143|255)\b", error[1])
        unwritable = "disk" in excuses and re.search(r"code (9|1|2)\b", error[1])
        excused = state == "FAILED" and (error[0] in excuses or error[0] == "runtime" and bool(signalled or unwritable))
        right = {
            "tick": state == "SUCCESS", "burst": state == "SUCCESS", "stop": state in ("ABORTED", "SUCCESS"),
            "fail": state == "FAILED" and error[0] == "runtime" and "code 3" in error[1],
        }[kind]  # fmt: skip
        self.balance[f"{kind}: {state}" + (f" {error[0]}" if error[0] else "")] += 1
        if not (right or excused):
            self.wrong.append(f"job {job} ({kind}, {ticks} ticks) ended as {state} {error}; excuses: {excuses}")
        if state == "FAILED" and not error[1]:
            self.wrong.append(f"job {job} failed without a reason")
        # What a solver prints while its engine is dead is read by nobody.
        ran = (state == "SUCCESS" or "code 3" in error[1]) and "killed" not in excuses
        self.judge_log(kind, ticks, nonce, path, job, complete=ran)
        if state == "SUCCESS":
            outputs = self.call("GET", f"{path}/outputs").json()["results"]
            content = self.call("GET", f"/v0/files/{outputs['proof']['id']}/content", follow_redirects=True).text
            if outputs["ticks"] != ticks or content != f"{nonce} {self.seed_text}\n":
                self.wrong.append(f"job {job} has outputs {outputs} and content {content!r}")

    def judge_log(self, kind: str, ticks: int, nonce: str, path: str, job: str, complete: bool):
        answer = self.call("GET", f"{path}/outputs/logfile", follow_redirects=True)
        if answer.status_code != 200:
            self.wrong.append(f"job {job} has no log: {answer.status_code} {answer.text}")
            return
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            text = archive.read(archive.namelist()[0]).decode()
        lines = [line.partition(" ")[2] for line in text.splitlines()]
        lines = [line for line in lines if "solverd" not in line and ("sh: " not in line or complete)]
        expected = printed_by(kind, ticks, nonce)
        if lines != (expected if complete else expected[: len(lines)]):
            at = next((i for i, (a, b) in enumerate(zip(lines, expected)) if a != b), min(len(lines), len(expected)))
            self.wrong.append(f"the log of job {job} ({kind}, {ticks}) is wrong at line {at} of {len(lines)}, {len(expected)} expected: {lines[max(0, at - 3) : at + 4]}\n{text[-3000:]}")
        self.balance["log lines"] += len(lines)


class Starts(threading.Thread):
    """Counts the starts of containers, by job."""

    def __init__(self, world: World):
        super().__init__(daemon=True)
        self.world, self.counts, self.times = world, collections.Counter(), collections.defaultdict(list)

    def run(self):
        shown = '{{.TimeNano}} {{index .Actor.Attributes "solverd.job"}}'
        since, seen = str(int(time.time())), set()
        while not self.world.done.is_set():
            command = ["docker", "events", "--since", since, "--filter", "event=start", "--filter", "label=solverd.job", "--format", shown]
            with subprocess.Popen(command, env=self.world.engine.env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as self.process:
                for line in self.process.stdout:
                    if line not in seen:
                        seen.add(line)
                        self.counts[line.split()[1]] += 1
                        self.times[line.split()[1]].append(time.strftime("%H:%M:%S", time.localtime(int(line.split()[0]) / 1e9)))
            self.world.done.wait(0.1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--users", type=int, default=6)
    parser.add_argument("--only", default="", help="a regular expression: other faults are left out")
    parser.add_argument("--outage", type=float, default=3, help="the longest time that a part is away, in seconds")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="solverd-chaos."))
    url = os.environ.get("CHAOS_POSTGRES_URL")
    say(f"{arguments.cycles} cycles, seed {arguments.seed}, {'Postgres' if url else 'SQLite'}, {'an engine of its own' if OWN_ENGINE else 'the engine at hand'}")
    world = World(folder, url, arguments.seed, arguments.outage)
    wrong, users, done = [], [], collections.Counter()
    try:
        starts = Starts(world)
        starts.start()
        users = [User(world, number, arguments.seed) for number in range(arguments.users)]
        for user in users:
            user.start()
        faults, deck = {name: fault for name, fault in world.faults().items() if re.search(arguments.only, name)}, []
        for cycle in range(1, arguments.cycles + 1):
            world.pause(0.3, 2.5)
            if not deck:
                deck = list(faults)
                world.random.shuffle(deck)
            name = deck.pop()
            first = time.monotonic()
            at = len(world.windows)
            world.windows.append((name, first, float("inf")))
            faults[name]()
            world.windows[at] = (name, first, time.monotonic())
            done[name] += 1
            say(f"cycle {cycle}: {name}, {time.monotonic() - first:.1f} s")
            if any(user.wrong for user in users):
                break
        world.done.set()
        for user in users:
            user.join(300)
            wrong += user.wrong + ([f"{user.name} does not come to an end"] if user.is_alive() else [])
        try:
            until("nothing to be left", lambda: not world.left(), 60, 0.5)
        except AssertionError:
            wrong.append(f"left behind: {world.left()}")
        starts.process.kill()
        wrong += [f"job {job} was started {count} times: {starts.times[job]}" for job, count in starts.counts.items() if count > 1]
    except BaseException:
        wrong.append(traceback.format_exc())
        raise
    finally:
        world.done.set()
        if wrong:
            for log in ("service/stderr", "storage/stderr"):
                tail = (folder / log).read_text(errors="replace").splitlines()[-40:] if (folder / log).exists() else []
                print("\n".join([f"-- the end of {log} --", *tail]))
        world.close()
        balance = sum((user.balance for user in users), collections.Counter())
        say(f"faults: {dict(done)}")
        jobs = sum(count for name, count in balance.items() if name != "log lines")
        say(f"{jobs} jobs, {sum(starts.counts.values())} containers started, {balance.pop('log lines', 0)} log lines compared")
        for name, count in sorted(balance.items()):
            print(f"  {count:5} {name}")
        print("\n".join([f"WRONG ({len(wrong)}):", *wrong]) if wrong else "nothing lost, nothing doubled, nothing left", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
