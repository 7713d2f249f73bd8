-- Uploads under way, to find those that were abandoned.
CREATE INDEX files_uploading ON files (created_at) WHERE completed_at IS NULL;

-- Lists show uploads only, not what jobs have made.
DROP INDEX files_by_content;
DROP INDEX files_by_owner;
CREATE INDEX files_by_content ON files (owner, sha256, created_at, id) WHERE completed_at IS NOT NULL AND job_id IS NULL;
CREATE INDEX files_by_owner ON files (owner, created_at, id) WHERE completed_at IS NOT NULL AND job_id IS NULL;

-- They are counted as lists of jobs are.
INSERT INTO job_counts (owner, list, level, since, jobs)
SELECT owner, 'files', level, MIN(created_at), COUNT(*)
FROM (
    SELECT owner, created_at, RANK() OVER (PARTITION BY owner ORDER BY created_at) - 1 AS place
    FROM files WHERE completed_at IS NOT NULL AND job_id IS NULL
) AS ranked
CROSS JOIN (SELECT 0 AS level, 1000 AS size UNION ALL SELECT 1, 32000) AS levels
GROUP BY owner, level, place / size;
