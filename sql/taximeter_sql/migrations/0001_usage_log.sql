-- One row for every message of usage.events.v1, whatever became of it. A batch is one block, so it is there whole or not at all,
-- and its token drops a replay. Partitioned by the month of arrival, so that a batch never spans two partitions.
CREATE TABLE usage_log
(
    log_id            LowCardinality(String),
    partition         UInt32,
    offset            UInt64,
    batch_first       UInt64,
    batch_last        UInt64,
    arrived_at        DateTime64(3, 'UTC'),
    disposition       Enum8('rated' = 1, 'unrated' = 2, 'duplicate' = 3, 'rejected' = 4),
    reason            LowCardinality(String),
    tenant            LowCardinality(String),
    feature           LowCardinality(String),
    model             LowCardinality(String),
    adapter           LowCardinality(String),
    operation         LowCardinality(String),
    outcome           LowCardinality(String),
    service_tier      LowCardinality(String),
    source            String,
    event_id          String,
    time              DateTime64(6, 'UTC'),
    request_id        String,
    root_request_id   String,
    hop               UInt16,
    attempt           UInt16,
    uncached_input    UInt32,
    cache_read_gpu    UInt32,
    cache_read_cpu    UInt32,
    cache_read_disk   UInt32,
    cache_read_provider UInt32,
    cache_write_5m    UInt32,
    cache_write_1h    UInt32,
    output            UInt32,
    reasoning         UInt32,
    pool              LowCardinality(String),
    block_size        UInt32,
    hit_blocks        UInt32,
    blocks            Array(String),
    attribution       LowCardinality(String),
    worker_id         String,
    worker_sequence   UInt64,
    gpu_seconds       Float64,
    queue_ms          Nullable(Float32),
    ttft_ms           Nullable(Float32),
    total_ms          Nullable(Float32),
    lease_id          String,
    attributes        Map(String, String),
    currency          LowCardinality(String),
    rate_card         LowCardinality(String),
    list_pico         Int64,
    metered_pico      Int64,
    identity          FixedString(16),
    body              FixedString(16)
)
ENGINE = {MergeTree}
PARTITION BY toYYYYMM(arrived_at)
ORDER BY (tenant, time, log_id, partition, offset)
SETTINGS non_replicated_deduplication_window = 10000;

CREATE VIEW usage_events AS SELECT * FROM usage_log WHERE disposition = 'rated';

CREATE VIEW usage_unrated AS SELECT * FROM usage_log WHERE disposition = 'unrated';

CREATE VIEW usage_duplicates AS SELECT * FROM usage_log WHERE disposition = 'duplicate';

CREATE VIEW usage_rejected AS SELECT * FROM usage_log WHERE disposition = 'rejected';
