"""`solverd doctor` says what is right and what is wrong."""

import os
import subprocess

from harness import Server, docker


def doctor(server: Server, *before) -> tuple[int, str]:
    done = subprocess.run([*before, server.binary, "doctor"], env=server.env, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_all_is_well(tmp_path):
    server = Server(tmp_path)
    code, text = doctor(server)
    assert code == 0 and "WRONG" not in text, text
    assert f"ok     Jobs' folders: a container sees what is in {server.data}" in text, text


def test_a_folder_that_the_engine_does_not_see(tmp_path):
    server = Server(tmp_path)
    server.data.mkdir()
    # The same path means something else to us than to the engine, as in a container.
    ours = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    code, text = doctor(server, *ours, "sh", "-c", f'mount -t tmpfs tmpfs "{server.data}" && exec "$0" "$@"')
    assert code == 1 and f"WRONG  Jobs' folders: a container does not see what is in {server.data}" in text, text
    assert "mount it under that path" in text, text
    assert "solverd-probe" not in docker("images") + docker("ps", "--all"), "nothing is left"
