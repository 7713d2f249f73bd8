-- What a job's container takes of its machine, as decided when it was created; zero if it is made of steps.
ALTER TABLE jobs ADD COLUMN nano_cpus BIGINT NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN memory_bytes BIGINT NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN gpus BIGINT NOT NULL DEFAULT 0;
-- Why it is still in the queue, once it was its turn.
ALTER TABLE jobs ADD COLUMN waiting TEXT;

-- By pattern: a JSON function would refuse \u0000 anywhere in the text.
UPDATE jobs
SET nano_cpus = COALESCE(SUBSTRING(definition FROM '"resources":\{"nano_cpus":(\d+)')::BIGINT, 0),
    memory_bytes = COALESCE(SUBSTRING(definition FROM '"resources":\{"nano_cpus":\d+,"memory_bytes":(\d+)')::BIGINT, 0)
FROM releases
WHERE releases.solver_key = jobs.solver_key AND releases.solver_version = jobs.solver_version;

-- The queue: of each owner, oldest first. What takes nothing waits for nobody.
DROP INDEX jobs_queued;
CREATE INDEX jobs_queued ON jobs (owner, submitted_at, id)
    WHERE state IN ('PUBLISHED', 'WAITING_FOR_RESOURCES') AND stop_requested_at IS NULL AND nano_cpus > 0;
CREATE INDEX jobs_queued_for_nothing ON jobs (submitted_at, id)
    WHERE state IN ('PUBLISHED', 'WAITING_FOR_RESOURCES') AND stop_requested_at IS NULL AND nano_cpus = 0;
CREATE INDEX jobs_queued_to_stop ON jobs (submitted_at, id)
    WHERE state IN ('PUBLISHED', 'WAITING_FOR_RESOURCES') AND stop_requested_at IS NOT NULL;
