-- A step of a job is a job too: that of its parent.
ALTER TABLE jobs ADD COLUMN parent_id UUID REFERENCES jobs (id);
ALTER TABLE jobs ADD COLUMN step TEXT;
ALTER TABLE jobs ADD COLUMN study_id UUID;

-- No step has two jobs.
CREATE UNIQUE INDEX jobs_of_parent ON jobs (parent_id, step) WHERE parent_id IS NOT NULL;
CREATE INDEX jobs_of_study ON jobs (owner, study_id, created_at, id) WHERE study_id IS NOT NULL;

-- Steps are in no list of jobs.
DROP INDEX jobs_of_release;
DROP INDEX jobs_of_owner;
DROP INDEX jobs_of_state;
CREATE INDEX jobs_of_release ON jobs (owner, solver_key, solver_version, created_at, id) WHERE deleted_at IS NULL AND parent_id IS NULL;
CREATE INDEX jobs_of_owner ON jobs (owner, created_at, id) WHERE deleted_at IS NULL AND parent_id IS NULL;
CREATE INDEX jobs_of_state ON jobs (owner, state, created_at, id) WHERE deleted_at IS NULL AND parent_id IS NULL;

-- Names under which releases made of steps are offered: to everybody, or to one user.
CREATE TABLE studies (
    id             UUID PRIMARY KEY,
    owner          BIGINT REFERENCES users (id) ON DELETE CASCADE,
    title          TEXT NOT NULL,
    description    TEXT NOT NULL,
    solver_key     TEXT NOT NULL,
    solver_version TEXT NOT NULL,
    hidden         BOOLEAN NOT NULL,
    created_at     TIMESTAMPTZ NOT NULL,
    FOREIGN KEY (solver_key, solver_version) REFERENCES releases (solver_key, solver_version)
);

CREATE INDEX studies_by_owner ON studies (owner, created_at, id);
