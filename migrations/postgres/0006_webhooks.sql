-- Where the end of a job is to be told, and how that stands. Secret and payload are there as long as they are needed.
CREATE TABLE webhooks (
    job_id          UUID PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
    url             TEXT NOT NULL,
    secret          BYTEA,
    payload         TEXT,
    state           TEXT NOT NULL,
    attempts        INTEGER NOT NULL,
    next_attempt_at TIMESTAMPTZ,
    last_result     TEXT
);

CREATE INDEX webhooks_due ON webhooks (next_attempt_at) WHERE next_attempt_at IS NOT NULL;
