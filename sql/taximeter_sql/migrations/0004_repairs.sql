-- A correction of a rollup is a difference, which may be less than nothing; so counts of rollups are signed.
ALTER TABLE usage_hourly MODIFY COLUMN events Int64, MODIFY COLUMN uncached_input Int64, MODIFY COLUMN cache_read_gpu Int64, MODIFY COLUMN cache_read_cpu Int64, MODIFY COLUMN cache_read_disk Int64, MODIFY COLUMN cache_read_provider Int64, MODIFY COLUMN cache_write_5m Int64, MODIFY COLUMN cache_write_1h Int64, MODIFY COLUMN output Int64, MODIFY COLUMN reasoning Int64;

ALTER TABLE usage_daily MODIFY COLUMN events Int64, MODIFY COLUMN uncached_input Int64, MODIFY COLUMN cache_read_gpu Int64, MODIFY COLUMN cache_read_cpu Int64, MODIFY COLUMN cache_read_disk Int64, MODIFY COLUMN cache_read_provider Int64, MODIFY COLUMN cache_write_5m Int64, MODIFY COLUMN cache_write_1h Int64, MODIFY COLUMN output Int64, MODIFY COLUMN reasoning Int64;

ALTER TABLE usage_counts_hourly MODIFY COLUMN events Int64;

-- What `taximeter reconcile --repair` added to a rollup, when, and by how much: one row for each cell (rollup, bucket, tenant).
CREATE TABLE rollup_repairs
(
    rollup        LowCardinality(String),
    bucket        DateTime('UTC'),
    tenant        LowCardinality(String),
    events        Int64,
    metered_pico  Int128,
    token         String,
    repaired_at   DateTime64(3, 'UTC')
)
ENGINE = {MergeTree}
ORDER BY (rollup, tenant, bucket, repaired_at)
SETTINGS non_replicated_deduplication_window = 10000;
