-- The services on this database, by the name that their jobs' leases hold. Each says again and again that it is there, by its own clock.
CREATE TABLE instances (
    name    TEXT PRIMARY KEY,
    seen_at TIMESTAMPTZ NOT NULL
);
