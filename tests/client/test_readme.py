"""README.md keeps its word: its walkthroughs are run as they are printed."""

import base64
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from harness import REPO, Server, docker, wait_until

CURL, PYTHON, OWN = "A walkthrough with curl", "A walkthrough with Python", "Your own solver"
WAITING = "Waiting, repeating, limits"
IMAGE = "count-word:1.0.0"


def blocks(section: str, language: str) -> str:
    """The code of one section of README.md."""
    text = (REPO / "README.md").read_text()
    [part] = re.findall(rf"^## {section}\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
    found = re.findall(rf"^```{language}\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)
    assert found, f"section '{section}' has no {language} code"
    return "\n".join(found)


def fill_in(code: str, *pairs: tuple[str, str]) -> str:
    """Does what the reader is asked to do: puts their own values in place of the printed ones."""
    for printed, own in pairs:
        assert code.count(printed) == 1, f"{printed} is there {code.count(printed)} times"
        code = code.replace(printed, own)
    return code


@pytest.fixture
def run(server: Server, tmp_path):
    """Runs code in an empty folder, with `solverd` on the path, and returns what it printed."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "solverd").symlink_to(server.binary)
    env = server.env | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


def with_python(server: Server, code: str) -> str:
    own = {"http://127.0.0.1:8000": server.url, "KEY": server.KEY, "SECRET": server.SECRET}
    return fill_in(code, *((f'"{printed}"', f'"{value}"') for printed, value in own.items()))


def same_number_twice(seen: str) -> bool:
    """The sleeper's one random number is the value of one output and the content of the other."""
    [value] = re.findall(r"^output_2 is (\d)$", seen, re.MULTILINE)
    [content] = re.findall(r"^output_1 holds (\d)$", seen, re.MULTILINE)
    return value == content


def test_curl(server, sleeper, run):
    access = ("http://127.0.0.1:8000", server.url), ("KEY:SECRET", f"{server.KEY}:{server.SECRET}")
    seen = run("bash", "-euo", "pipefail", "-c", fill_in(blocks(CURL, "sh"), *access))
    assert server.EMAIL in seen and '"key": "input_1"' in seen
    assert "SUCCESS 100 %" in seen
    assert same_number_twice(seen)
    assert "Will sleep for 3 seconds" in seen and "[PROGRESS] 3/3" in seen


def test_python(server, sleeper, run):
    seen = run(sys.executable, "-c", with_python(server, blocks(PYTHON, "python")))
    assert "SUCCESS 100 %" in seen and "[PROGRESS] 3/3" in seen
    assert same_number_twice(seen)


def test_own_solver(server, sleeper, run):
    # Its base image is there: `make test` has built the calculix solver on it.
    try:
        seen = run("bash", "-euo", "pipefail", "-c", blocks(OWN, "sh"))
        assert "example/count-word 1.0.0 published" in seen and "example/count-word 1.0.0  Count a word" in seen
        seen = run(sys.executable, "-c", with_python(server, blocks(PYTHON, "python") + blocks(OWN, "python")))
        assert "looking for 'the'" in seen
        assert seen.endswith("found 2\nthe cat\nthe end\n\n")
    finally:
        docker("rmi", "--force", IMAGE)


def test_callback(ada):
    received = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append((self.headers, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    secret = "whsec_" + base64.b64encode(os.urandom(32)).decode()
    jobs = "/v0/solvers/simcore%2Fservices%2Fcomp%2Fitis%2Fsleeper/releases/2.1.6/jobs"
    with HTTPServer(("127.0.0.1", 0), Receiver) as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        callback = {"url": f"http://127.0.0.1:{receiver.server_port}/", "secret": secret}
        job = ada.http.post(jobs, json={"values": {"input_2": 0}, "callback": callback}).json()["id"]
        ada.http.post(f"{jobs}/{job}:start").raise_for_status()
        wait_until(lambda: received, bool, 60, "the callback comes")
        receiver.shutdown()

    verification = {}
    exec(blocks(WAITING, "python"), verification)
    is_genuine, [(headers, body)] = verification["is_genuine"], received
    assert headers["webhook-id"] == job and json.loads(body)["type"] == "job.succeeded"
    assert is_genuine(secret, headers, body)
    assert not is_genuine(secret, headers, body + b" ")
    assert not is_genuine("whsec_" + base64.b64encode(bytes(32)).decode(), headers, body)
    headers.replace_header("webhook-timestamp", str(int(headers["webhook-timestamp"]) - 301))
    assert not is_genuine(secret, headers, body)
