-- The rated events of these tenants, each in its own span, as the other billing_fold_* queries fold them (they begin with
-- WITH folded AS (this)). Rows inserted after `untils` do not
-- count. Parameters: tenants, starts, ends, untils (arrays of one length), lengths (input lengths at which prices part).
-- `exact` rows have blocks that explain their counts to the token: one read tier at most and no paid writes. Their blocks are the
-- hit ones and then the filled ones. `cell` names by hash the tenant, whatever chooses the price, the read tier and the pool.
SELECT
    tenant, rate_card, feature, model, adapter, operation, service_tier, attributes['region'] AS region,
    toUInt64(uncached_input) + reads + writes AS input_tokens,
    arrayCount(length -> input_tokens > length, {lengths:Array(UInt64)}) AS band,
    toUInt64(cache_read_gpu) + cache_read_cpu + cache_read_disk + cache_read_provider AS reads,
    toUInt64(cache_write_5m) + cache_write_1h AS writes,
    uncached_input, cache_read_gpu, cache_read_cpu, cache_read_disk, cache_read_provider, cache_write_5m, cache_write_1h,
    (cache_read_gpu > 0) + (cache_read_cpu > 0) + (cache_read_disk > 0) + (cache_read_provider > 0) <= 1
        AND writes = 0 AND notEmpty(blocks) AND toUInt64(hit_blocks) * block_size = reads AS exact,
    multiIf(cache_read_cpu > 0, 'cpu', cache_read_disk > 0, 'disk', cache_read_provider > 0, 'provider', 'gpu') AS tier,
    sipHash64(tenant, rate_card, feature, model, adapter, operation, service_tier, region, band, tier, pool) AS cell,
    pool, block_size, hit_blocks, blocks,
    if(block_size = 0, 0, least(intDiv(uncached_input, greatest(block_size, 1)), length(blocks) - hit_blocks)) AS filled_blocks,
    toUnixTimestamp64Micro(time) AS time_us, source, event_id,
    if(match(attributes['cache.evicted_at'], '^[0-9]{1,10}([.][0-9]{1,6})?$'),
        toInt64(toDecimal128OrZero(attributes['cache.evicted_at'], 6) * 1000000), -1) AS evicted_us,
    usage_log.output AS output, reasoning, gpu_seconds, attributes, list_pico, metered_pico
FROM usage_log
WHERE disposition = 'rated' AND tenant IN {tenants:Array(String)}
    AND time >= transform(tenant, {tenants:Array(String)}, {starts:Array(DateTime64(6, 'UTC'))}, toDateTime64('2200-01-01', 6, 'UTC'))
    AND time < transform(tenant, {tenants:Array(String)}, {ends:Array(DateTime64(6, 'UTC'))}, toDateTime64('1970-01-01', 6, 'UTC'))
    AND inserted_at <= transform(tenant, {tenants:Array(String)}, {untils:Array(DateTime64(3, 'UTC'))}, toDateTime64('1970-01-01', 3, 'UTC'))
