-- A late rating is a rated row with the reason 'rated_later'. The index finds those few without reading the many.
ALTER TABLE usage_log ADD INDEX IF NOT EXISTS reason_set reason TYPE set(64);

-- Unrated is what has no price yet: not what was rated later.
CREATE OR REPLACE VIEW usage_unrated AS
SELECT * FROM usage_log
WHERE disposition = 'unrated'
    AND (tenant, source, event_id) NOT IN (SELECT tenant, source, event_id FROM usage_log WHERE disposition = 'rated' AND reason = 'rated_later');

-- Rejected messages that were sent again: where each stood, where it stands now, by whom, and what was changed in it.
CREATE TABLE rejected_replays
(
    log_id            LowCardinality(String),
    partition         UInt32,
    offset            UInt64,
    replay_log_id     LowCardinality(String),
    replay_partition  UInt32,
    replay_offset     UInt64,
    changes           String,
    replayed_by       String,
    replayed_at       DateTime64(3, 'UTC')
)
ENGINE = {MergeTree}
ORDER BY (log_id, partition, offset, replayed_at);
