-- Which job a request with an idempotency key has made. No reference to the job: the key must outlive it.
CREATE TABLE idempotency_keys (
    owner       INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    key         TEXT NOT NULL,
    fingerprint BLOB NOT NULL,
    job_id      BLOB NOT NULL,
    created_at  TEXT NOT NULL,
    PRIMARY KEY (owner, key)
) STRICT;

CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);
