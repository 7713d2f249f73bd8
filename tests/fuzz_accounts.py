"""Readies a service for scripts/fuzz.sh: writes the two accounts it is fuzzed with, and uploads some files as the first.

    solverd keys create EMAIL --json | python fuzz_accounts.py TARGET

The first account is that of OSPARC_API_KEY, the second one that of standard input, which must not see what the first one has.
"""

import base64
import json
import os
import sys
import tempfile
from pathlib import Path

import osparc


def account(name: str, key: str, secret: str) -> dict:
    credentials = base64.b64encode(f"{key}:{secret}".encode()).decode()
    return {"name": name, "fixedHeaders": [{"name": "Authorization", "value": f"Basic {credentials}"}]}


other = json.load(sys.stdin)
accounts = [
    account("owner", os.environ["OSPARC_API_KEY"], os.environ["OSPARC_API_SECRET"]),
    account("other", other["key"], other["secret"]),
]
Path(sys.argv[1]).write_text(json.dumps({"auth": accounts}))

# No fuzzer can complete an upload: the content goes elsewhere. Several, because it deletes them.
files = osparc.FilesApi(osparc.ApiClient())
with tempfile.TemporaryDirectory() as folder:
    for number in range(10):
        file = Path(folder) / f"{number}.txt"
        file.write_text(str(number))
        files.upload_file(file=file)
