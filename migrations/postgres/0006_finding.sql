-- Uploads under way, to find those that were abandoned.
CREATE INDEX files_uploading ON files (created_at) WHERE completed_at IS NULL;
