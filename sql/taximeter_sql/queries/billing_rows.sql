-- The rated events of one tenant in a period, in order of time. Parameters: tenant, start, end (not included).
SELECT
    tenant, feature, model, adapter, operation, service_tier, rate_card, source, event_id, toUnixTimestamp64Micro(time) AS time_us,
    uncached_input, cache_read_gpu, cache_read_cpu, cache_read_disk, cache_read_provider, cache_write_5m, cache_write_1h, output,
    pool, block_size, hit_blocks, blocks, list_pico, metered_pico
FROM usage_events
WHERE tenant = {tenant:String} AND time >= {start:DateTime64(6, 'UTC')} AND time < {end:DateTime64(6, 'UTC')}
ORDER BY time, source, event_id
