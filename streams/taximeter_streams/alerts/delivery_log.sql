-- The alerts service's delivery log. An acknowledged write must survive a crash of the machine, hence FULL.
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;

-- One row for each alert and endpoint; `number` is the order in which an endpoint gets them. Times are Unix seconds.
CREATE TABLE IF NOT EXISTS delivery (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    alert_id TEXT NOT NULL,
    endpoint_id TEXT NOT NULL,
    tenant TEXT NOT NULL,
    body TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('pending', 'delivered', 'failed')),
    attempts INTEGER NOT NULL,
    first_attempt_at REAL,
    next_attempt_at REAL NOT NULL,
    last_error TEXT,
    finished_at REAL,
    UNIQUE (alert_id, endpoint_id)
);
CREATE INDEX IF NOT EXISTS delivery_pending ON delivery (endpoint_id, number) WHERE status = 'pending';
CREATE INDEX IF NOT EXISTS delivery_status ON delivery (status, number);

-- How far budget.alerts.v1 has been read, for each life of the log and partition.
CREATE TABLE IF NOT EXISTS position (
    log_id TEXT NOT NULL,
    partition INTEGER NOT NULL,
    next_offset INTEGER NOT NULL,
    PRIMARY KEY (log_id, partition)
);

-- Endpoints that the service gave up: nothing is sent there until it is enabled, or declared with another address.
CREATE TABLE IF NOT EXISTS dead_endpoint (
    endpoint_id TEXT PRIMARY KEY,
    url TEXT NOT NULL,
    reason TEXT NOT NULL,
    disabled_at REAL NOT NULL
);
