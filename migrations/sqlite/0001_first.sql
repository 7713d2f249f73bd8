-- JSON is kept as text in both databases: JSONB would reorder keys, turn 1e3 into 1000 and refuse \u0000.
CREATE TABLE users (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    email      TEXT NOT NULL CONSTRAINT users_email_unique UNIQUE,
    created_at TEXT NOT NULL
) STRICT;

CREATE TABLE api_keys (
    key         TEXT PRIMARY KEY,
    secret_hash BLOB NOT NULL,
    user_id     INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    created_at  TEXT NOT NULL
) STRICT;

CREATE TABLE releases (
    solver_key     TEXT NOT NULL,
    solver_version TEXT NOT NULL,
    definition     TEXT NOT NULL,
    published_at   TEXT NOT NULL,
    PRIMARY KEY (solver_key, solver_version)
) STRICT;

CREATE TABLE jobs (
    id                BLOB PRIMARY KEY,
    owner             INTEGER NOT NULL REFERENCES users (id),
    solver_key        TEXT NOT NULL,
    solver_version    TEXT NOT NULL,
    inputs            TEXT NOT NULL,
    inputs_checksum   TEXT NOT NULL,
    metadata          TEXT NOT NULL,
    state             TEXT NOT NULL,
    progress          INTEGER NOT NULL,
    created_at        TEXT NOT NULL,
    submitted_at      TEXT,
    started_at        TEXT,
    stopped_at        TEXT,
    stop_requested_at TEXT,
    deleted_at        TEXT,
    lease             TEXT,
    container         TEXT,
    error             TEXT,
    outputs           TEXT,
    log_key           TEXT,
    FOREIGN KEY (solver_key, solver_version) REFERENCES releases (solver_key, solver_version)
) STRICT;

CREATE INDEX jobs_of_release ON jobs (owner, solver_key, solver_version, created_at, id);
CREATE INDEX jobs_queued ON jobs (submitted_at, id) WHERE state = 'PUBLISHED';
CREATE INDEX jobs_leased ON jobs (lease) WHERE lease IS NOT NULL;
CREATE INDEX jobs_deleted ON jobs (deleted_at) WHERE deleted_at IS NOT NULL;

-- The history of every job: one row for each step of its state machine.
CREATE TABLE job_events (
    job_id BLOB NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    seq    INTEGER NOT NULL,
    name   TEXT NOT NULL,
    state  TEXT NOT NULL,
    at     TEXT NOT NULL,
    PRIMARY KEY (job_id, seq)
) STRICT;

-- The log of every job, in chunks of whole lines: the text is byte for byte that of the log file.
CREATE TABLE job_logs (
    job_id BLOB NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    seq    INTEGER NOT NULL,
    text   TEXT NOT NULL,
    PRIMARY KEY (job_id, seq)
) STRICT;

CREATE TABLE files (
    id           BLOB PRIMARY KEY,
    owner        INTEGER NOT NULL REFERENCES users (id),
    filename     TEXT NOT NULL,
    size         INTEGER NOT NULL,
    sha256       TEXT NOT NULL,
    e_tag        TEXT,
    upload_id    TEXT,
    job_id       BLOB REFERENCES jobs (id) ON DELETE CASCADE,
    created_at   TEXT NOT NULL,
    completed_at TEXT
) STRICT;

CREATE INDEX files_by_content ON files (owner, sha256);
CREATE INDEX files_by_owner ON files (owner, created_at, id);
CREATE INDEX files_of_job ON files (job_id) WHERE job_id IS NOT NULL;
