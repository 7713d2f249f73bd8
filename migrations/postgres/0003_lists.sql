-- Output files and log of an ended job are gone from then on.
ALTER TABLE jobs ADD COLUMN assets_deleted_at TIMESTAMPTZ;

DROP INDEX jobs_of_release;
CREATE INDEX jobs_of_release ON jobs (owner, solver_key, solver_version, created_at, id) WHERE deleted_at IS NULL;
CREATE INDEX jobs_of_owner ON jobs (owner, created_at, id) WHERE deleted_at IS NULL;
CREATE INDEX jobs_of_state ON jobs (owner, state, created_at, id) WHERE deleted_at IS NULL;

-- How many jobs a list holds, in runs of about 1000 (level 0) and 32 000 (level 1): a page far down is found by adding up runs, not by
-- counting jobs. `list` is empty for all jobs of an owner, KEY:VERSION for those of a release. A run holds what was created from `since`
-- on, to the next; where one of level 1 begins, one of level 0 does.
CREATE TABLE job_counts (
    owner BIGINT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    list  TEXT NOT NULL,
    level INTEGER NOT NULL,
    since TIMESTAMPTZ NOT NULL,
    jobs  INTEGER NOT NULL,
    PRIMARY KEY (owner, list, level, since)
);

INSERT INTO job_counts (owner, list, level, since, jobs)
SELECT owner, list, level, MIN(created_at), COUNT(*)
FROM (
    SELECT owner, list, created_at, RANK() OVER (PARTITION BY owner, list ORDER BY created_at) - 1 AS place
    FROM (
        SELECT owner, '' AS list, created_at FROM jobs WHERE deleted_at IS NULL
        UNION ALL
        SELECT owner, solver_key || ':' || solver_version, created_at FROM jobs WHERE deleted_at IS NULL
    ) AS listed
) AS ranked
CROSS JOIN (SELECT 0 AS level, 1000 AS size UNION ALL SELECT 1, 32000) AS levels
GROUP BY owner, list, level, place / size;

-- The owners' notes on their jobs, to be searched: as text, in lower case. Long ones are left out, an index does not take them.
CREATE TABLE job_notes (
    job_id UUID NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    owner  BIGINT NOT NULL,
    name   TEXT NOT NULL,
    value  TEXT NOT NULL,
    PRIMARY KEY (job_id, name)
);

CREATE INDEX job_notes_by_value ON job_notes (owner, name, value);

INSERT INTO job_notes (job_id, owner, name, value)
SELECT id, owner, key, LOWER(value)
FROM jobs, JSON_EACH_TEXT(CASE WHEN metadata LIKE '%\u0000%' ESCAPE '!' THEN '{}' ELSE metadata END::json)
WHERE LENGTH(key) <= 64 AND LENGTH(value) <= 512;
