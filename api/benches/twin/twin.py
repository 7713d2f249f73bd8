"""Two of solverd's requests, written with FastAPI: what requests.rs compares the service with.

The same work on SQLite, as durable: the key is looked up and its secret's hash compared on each request, values are checked against the
solver's ports, a job goes in with its history and its counts in one transaction. What would cost time and can be left out is left out: a job
is counted in two rows instead of four, and sqlite3 is called on the event loop, because handing such short calls to a thread takes longer.
Settings: TWIN_DATABASE, TWIN_KEY, TWIN_SECRET.
"""

import hashlib
import hmac
import json
import os
import sqlite3
from datetime import datetime, timezone
from typing import Annotated, Any
from uuid import UUID, uuid4

from fastapi import Depends, FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from pydantic import BaseModel, ConfigDict, ValidationError

KEY, VERSION = "simcore/services/comp/bench/solver", "1.0.0"


class File(BaseModel):
    id: UUID
    filename: str


class JobInputs(BaseModel):
    values: dict[str, File | float | int | bool | str | list[Any] | None]


class Ports(BaseModel):
    """The inputs of the solver; values for others are ignored."""

    model_config = ConfigDict(extra="ignore")
    input_1: File | None = None
    input_2: int | None = 2
    input_3: bool | None = False
    input_4: int | None = 0


class Job(BaseModel):
    id: UUID
    name: str
    inputs_checksum: str
    created_at: datetime
    runner_name: str
    url: str
    runner_url: str
    outputs_url: str


class JobStatus(BaseModel):
    job_id: UUID
    state: str
    progress: int
    submitted_at: datetime
    started_at: datetime | None
    stopped_at: datetime | None
    errors: list[Any] | None


SCHEMA = """
CREATE TABLE IF NOT EXISTS users (id INTEGER PRIMARY KEY, email TEXT NOT NULL UNIQUE, created_at TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS api_keys (key TEXT PRIMARY KEY, secret_hash BLOB NOT NULL, user_id INTEGER NOT NULL REFERENCES users (id)) STRICT;
CREATE TABLE IF NOT EXISTS jobs (
    id BLOB PRIMARY KEY, owner INTEGER NOT NULL REFERENCES users (id), solver_key TEXT NOT NULL, solver_version TEXT NOT NULL,
    inputs TEXT NOT NULL, inputs_checksum TEXT NOT NULL, state TEXT NOT NULL, progress INTEGER NOT NULL, created_at TEXT NOT NULL,
    submitted_at TEXT, started_at TEXT, stopped_at TEXT, deleted_at TEXT, error TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS jobs_of_release ON jobs (owner, solver_key, solver_version, created_at, id);
CREATE INDEX IF NOT EXISTS jobs_of_owner ON jobs (owner, created_at, id);
CREATE TABLE IF NOT EXISTS job_events (
    job_id BLOB NOT NULL REFERENCES jobs (id), seq INTEGER NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL, at TEXT NOT NULL,
    PRIMARY KEY (job_id, seq)
) STRICT;
CREATE TABLE IF NOT EXISTS job_counts (owner INTEGER NOT NULL, list TEXT NOT NULL, jobs INTEGER NOT NULL, PRIMARY KEY (owner, list)) STRICT;
"""

database = sqlite3.connect(os.environ["TWIN_DATABASE"], isolation_level=None, timeout=30)
database.execute("PRAGMA journal_mode = WAL")
database.execute("PRAGMA synchronous = FULL")
database.execute("PRAGMA foreign_keys = ON")
# Each worker gets here; the first one finds nothing.
database.executescript(SCHEMA)
secret_hash = hashlib.sha256(os.environ["TWIN_SECRET"].encode()).digest()
database.execute("INSERT OR IGNORE INTO users VALUES (1, 'bench@example.org', '2026-01-01T00:00:00Z')")
database.execute("INSERT OR IGNORE INTO api_keys VALUES (?, ?, 1)", (os.environ["TWIN_KEY"], secret_hash))

app = FastAPI()


async def caller(credentials: Annotated[HTTPBasicCredentials, Depends(HTTPBasic())]) -> int:
    row = database.execute(
        "SELECT k.secret_hash, u.id, u.email, u.created_at FROM api_keys k JOIN users u ON u.id = k.user_id WHERE k.key = ?", (credentials.username,)
    ).fetchone()
    given = hashlib.sha256(credentials.password.encode()).digest()
    if not hmac.compare_digest(given, row[0] if row else bytes(32)) or not row:
        raise HTTPException(401, "Invalid API credentials")
    return row[1]


Caller = Annotated[int, Depends(caller)]
RELEASE = "/v0/solvers/{solver_key:path}/releases/{version}"


@app.post(RELEASE + "/jobs", status_code=201)
async def create_job(solver_key: str, version: str, body: JobInputs, owner: Caller) -> Job:
    if (solver_key, version) != (KEY, VERSION):
        raise HTTPException(404, "no such release")
    try:
        Ports.model_validate(body.values)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
    job, now = uuid4(), datetime.now(timezone.utc)
    inputs = body.model_dump(mode="json")["values"]
    checksum = hashlib.sha256("".join(f"{key}:{inputs[key]}" for key in sorted(inputs)).encode()).hexdigest()
    at = now.isoformat()
    database.execute("BEGIN IMMEDIATE")
    try:
        for listed in ("", f"{solver_key} {version}"):
            database.execute(
                "INSERT INTO job_counts VALUES (?, ?, 1) ON CONFLICT (owner, list) DO UPDATE SET jobs = jobs + 1", (owner, listed)
            )
        database.execute(
            "INSERT INTO jobs (id, owner, solver_key, solver_version, inputs, inputs_checksum, state, progress, created_at) "
            "VALUES (?, ?, ?, ?, ?, ?, 'NOT_STARTED', 0, ?)",
            (job.bytes, owner, solver_key, version, json.dumps(inputs), checksum, at),
        )
        database.execute("INSERT INTO job_events VALUES (?, 1, 'create', 'NOT_STARTED', ?)", (job.bytes, at))
        database.execute("COMMIT")
    except BaseException:
        database.execute("ROLLBACK")
        raise
    runner = f"solvers/{solver_key.replace('/', '%2F')}/releases/{version}"
    url = f"http://127.0.0.1/v0/solvers/{solver_key}/releases/{version}"
    return Job(
        id=job,
        name=f"{runner}/jobs/{job}",
        inputs_checksum=checksum,
        created_at=now,
        runner_name=runner,
        url=f"{url}/jobs/{job}",
        runner_url=url,
        outputs_url=f"{url}/jobs/{job}/outputs",
    )


@app.post(RELEASE + "/jobs/{job_id}:inspect")
async def inspect_job(solver_key: str, version: str, job_id: UUID, owner: Caller) -> JobStatus:
    row = database.execute(
        "SELECT solver_key, solver_version, state, progress, created_at, submitted_at, started_at, stopped_at, error FROM jobs "
        "WHERE id = ? AND owner = ? AND deleted_at IS NULL",
        (job_id.bytes, owner),
    ).fetchone()
    if row is None or row[:2] != (solver_key, version):
        raise HTTPException(404, f"job {job_id} not found")
    _, _, state, progress, created, submitted, started, stopped, error = row
    return JobStatus(
        job_id=job_id,
        state=state,
        progress=progress,
        submitted_at=submitted or created,
        started_at=started,
        stopped_at=stopped,
        errors=error and [error],
    )
