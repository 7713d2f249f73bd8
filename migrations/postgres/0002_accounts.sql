ALTER TABLE users ADD COLUMN first_name TEXT;
ALTER TABLE users ADD COLUMN last_name TEXT;
ALTER TABLE users ADD COLUMN language TEXT;

-- What every job that ran has used: the books. A row outlives its job, so no key leads to `jobs`.
CREATE TABLE job_usage (
    job_id         UUID PRIMARY KEY,
    owner          BIGINT NOT NULL REFERENCES users (id),
    solver_key     TEXT NOT NULL,
    solver_version TEXT NOT NULL,
    cpu_micros     BIGINT NOT NULL,
    cpu_source     TEXT NOT NULL,
    wall_micros    BIGINT NOT NULL,
    peak_memory    BIGINT,
    stopped_at     TIMESTAMPTZ NOT NULL
);

CREATE INDEX job_usage_of_owner ON job_usage (owner, stopped_at);
