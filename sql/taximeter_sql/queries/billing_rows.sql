-- The rated events of these tenants, each in its own span, tenant by tenant in the order given, in order of time. Or (`taken_back`)
-- of these, those that their own line may not pay for: usage of reserved throughput, and events that a later one voids or amends.
-- Rows inserted after `untils` do not count. Parameters: tenants, starts, ends, untils (arrays of one length), taken_back, corrected
-- (event ids; another source's event of the same id may be among the rows).
SELECT
    tenant, feature, model, adapter, operation, service_tier, rate_card, source, event_id, toUnixTimestamp64Micro(time) AS time_us,
    uncached_input, cache_read_gpu, cache_read_cpu, cache_read_disk, cache_read_provider, cache_write_5m, cache_write_1h, output,
    pool, block_size, hit_blocks, blocks, list_pico, metered_pico,
    reasoning, gpu_seconds, attributes['region'] AS region, attributes['search_units'] AS search_units,
    attributes['adapter_hours'] AS adapter_hours, attributes['cache.evicted_at'] AS evicted_at
FROM usage_log
WHERE disposition = 'rated' AND has({tenants:Array(String)}, tenant)
    AND time >= {starts:Array(DateTime64(6, 'UTC'))}[indexOf({tenants:Array(String)}, tenant)]
    AND time < {ends:Array(DateTime64(6, 'UTC'))}[indexOf({tenants:Array(String)}, tenant)]
    AND inserted_at <= {untils:Array(DateTime64(3, 'UTC'))}[indexOf({tenants:Array(String)}, tenant)]
    AND (NOT {taken_back:UInt8} OR service_tier = 'provisioned' OR event_id IN {corrected:Array(String)})
ORDER BY indexOf({tenants:Array(String)}, tenant), time, source, event_id
