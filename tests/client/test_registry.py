"""Images in a registry that asks for a password: a real one, on the loopback interface."""

import base64
import json
import re
import subprocess
from pathlib import Path

import pytest
from harness import SLEEPER, Server, docker, wait_until

# bcrypt of `registry-password`, which is all that the registry understands.
PASSWORD = "registry-user:$2y$05$zuC6lNvFWDCfctRIWas8d.jqyIKHbDst8.t/5uE6yz7wwXk3shR1K"
CONFIG = """
version: 0.1
storage: {{filesystem: {{rootdirectory: {folder}/images}}}}
http: {{addr: "127.0.0.1:0"}}
auth: {{htpasswd: {{realm: test, path: {folder}/passwords}}}}
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    folder = tmp_path_factory.mktemp("registry")
    (folder / "passwords").write_text(PASSWORD + "\n")
    (folder / "config.yml").write_text(CONFIG.format(folder=folder))
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(["docker-registry", "serve", folder / "config.yml"], stdout=out, stderr=out)
    try:
        listening = re.compile(r"listening on (127\.0\.0\.1:\d+)")
        wait_until(log.read_text, listening.search, 30, "the registry listens")
        address = listening.search(log.read_text())[1]
        yield address
        # What was pulled keeps the registry's name.
        named = ["--format", "{{.Repository}}@{{.Digest}}", "--digests", f"{address}/{SLEEPER}"]
        for name in docker("images", *named).split():
            docker("rmi", name)
    finally:
        process.terminate()
        process.wait(30)


def log_in(folder: Path, registry: str, password: str) -> Path:
    """A configuration as `docker login` writes it."""
    folder.mkdir(exist_ok=True)
    auth = base64.b64encode(f"registry-user:{password}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {registry: {"auth": auth}}}))
    return folder


@pytest.fixture
def image(registry, sleeper, tmp_path):
    """The sleeper in the registry, and nowhere else."""
    name = f"{registry}/{SLEEPER}:2.1.6"
    docker("tag", f"{SLEEPER}:2.1.6", name)
    config = log_in(tmp_path / "pusher", registry, "registry-password")
    docker("--config", str(config), "push", name)
    # Another image, of which the engine knows the content only by pulling it.
    recipe = f"FROM {name}\nLABEL solverd.test={tmp_path.name}\n"
    docker("build", "--tag", name, "-", stdin=recipe)
    docker("--config", str(config), "push", name)
    docker("rmi", name)
    return name


def test_publish_and_run_an_image_from_a_registry(registry, image, tmp_path):
    server = Server(tmp_path)
    server.env["DOCKER_CONFIG"] = str(log_in(tmp_path / "config", registry, "registry-password"))
    server.start()
    try:
        told = server.run("solvers", "publish", image)
        assert "Status: Downloaded newer image" in told and f"{SLEEPER} 2.1.6 published" in told, told
        # Whatever becomes of the tag, the job pulls what was published.
        docker("rmi", image)
        job = server.client().job(input_2=0).start()
        job.until("SUCCESS")
        text = "\n".join(job.log_lines())
        assert re.search(rf"pulling {re.escape(registry)}/{SLEEPER}@sha256:[0-9a-f]{{64}}\n", text), text
        assert "Digest: sha256:" in text and "Status: Downloaded newer image" in text, text
    finally:
        server.stop()
        subprocess.run(["docker", "rmi", image], capture_output=True)


def test_a_wrong_password_is_told(registry, image, tmp_path):
    server = Server(tmp_path)
    server.env["DOCKER_CONFIG"] = str(log_in(tmp_path / "config", registry, "wrong"))
    done = subprocess.run([server.binary, "solvers", "publish", image], env=server.env, capture_output=True, text=True)
    assert done.returncode == 1, done
    assert f"image `{image}` cannot be pulled" in done.stderr and "unauthorized" in done.stderr.lower(), done.stderr
