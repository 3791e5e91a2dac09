-- Rollups of rated events by hour and by day of the event's time (UTC). Sums only: a SummingMergeTree adds them up in the background.
CREATE TABLE usage_hourly
(
    hour                DateTime('UTC'),
    tenant              LowCardinality(String),
    feature             LowCardinality(String),
    model               LowCardinality(String),
    operation           LowCardinality(String),
    service_tier        LowCardinality(String),
    currency            LowCardinality(String),
    events              UInt64,
    uncached_input      UInt64,
    cache_read_gpu      UInt64,
    cache_read_cpu      UInt64,
    cache_read_disk     UInt64,
    cache_read_provider UInt64,
    cache_write_5m      UInt64,
    cache_write_1h      UInt64,
    output              UInt64,
    reasoning           UInt64,
    list_pico           Int128,
    metered_pico        Int128,
    saving_pico         Int128
)
ENGINE = {SummingMergeTree}
ORDER BY (hour, tenant, feature, model, operation, service_tier, currency)
SETTINGS non_replicated_deduplication_window = 10000;

CREATE MATERIALIZED VIEW usage_hourly_feed TO usage_hourly AS
SELECT
    toStartOfHour(time) AS hour,
    tenant,
    feature,
    model,
    operation,
    service_tier,
    currency,
    count() AS events,
    sum(uncached_input) AS uncached_input,
    sum(cache_read_gpu) AS cache_read_gpu,
    sum(cache_read_cpu) AS cache_read_cpu,
    sum(cache_read_disk) AS cache_read_disk,
    sum(cache_read_provider) AS cache_read_provider,
    sum(cache_write_5m) AS cache_write_5m,
    sum(cache_write_1h) AS cache_write_1h,
    sum(output) AS output,
    sum(reasoning) AS reasoning,
    sum(toInt128(usage_log.list_pico)) AS list_pico,
    sum(toInt128(usage_log.metered_pico)) AS metered_pico,
    sum(toInt128(usage_log.list_pico) - toInt128(usage_log.metered_pico)) AS saving_pico
FROM usage_log
WHERE disposition = 'rated'
GROUP BY hour, tenant, feature, model, operation, service_tier, currency;

CREATE TABLE usage_daily
(
    day                 Date,
    tenant              LowCardinality(String),
    feature             LowCardinality(String),
    model               LowCardinality(String),
    operation           LowCardinality(String),
    service_tier        LowCardinality(String),
    currency            LowCardinality(String),
    events              UInt64,
    uncached_input      UInt64,
    cache_read_gpu      UInt64,
    cache_read_cpu      UInt64,
    cache_read_disk     UInt64,
    cache_read_provider UInt64,
    cache_write_5m      UInt64,
    cache_write_1h      UInt64,
    output              UInt64,
    reasoning           UInt64,
    list_pico           Int128,
    metered_pico        Int128,
    saving_pico         Int128
)
ENGINE = {SummingMergeTree}
ORDER BY (day, tenant, feature, model, operation, service_tier, currency)
SETTINGS non_replicated_deduplication_window = 10000;

CREATE MATERIALIZED VIEW usage_daily_feed TO usage_daily AS
SELECT
    toDate(time) AS day,
    tenant,
    feature,
    model,
    operation,
    service_tier,
    currency,
    count() AS events,
    sum(uncached_input) AS uncached_input,
    sum(cache_read_gpu) AS cache_read_gpu,
    sum(cache_read_cpu) AS cache_read_cpu,
    sum(cache_read_disk) AS cache_read_disk,
    sum(cache_read_provider) AS cache_read_provider,
    sum(cache_write_5m) AS cache_write_5m,
    sum(cache_write_1h) AS cache_write_1h,
    sum(output) AS output,
    sum(reasoning) AS reasoning,
    sum(toInt128(usage_log.list_pico)) AS list_pico,
    sum(toInt128(usage_log.metered_pico)) AS metered_pico,
    sum(toInt128(usage_log.list_pico) - toInt128(usage_log.metered_pico)) AS saving_pico
FROM usage_log
WHERE disposition = 'rated'
GROUP BY day, tenant, feature, model, operation, service_tier, currency;

-- How many messages arrived by hour of arrival, and what became of them: the left side of the law of conservation.
CREATE TABLE usage_counts_hourly
(
    hour                DateTime('UTC'),
    tenant              LowCardinality(String),
    disposition         LowCardinality(String),
    reason              LowCardinality(String),
    events              UInt64
)
ENGINE = {SummingMergeTree}
ORDER BY (hour, tenant, disposition, reason)
SETTINGS non_replicated_deduplication_window = 10000;

CREATE MATERIALIZED VIEW usage_counts_hourly_feed TO usage_counts_hourly AS
SELECT toStartOfHour(arrived_at) AS hour, tenant, toString(usage_log.disposition) AS disposition, reason, count() AS events
FROM usage_log
GROUP BY hour, tenant, disposition, reason;
