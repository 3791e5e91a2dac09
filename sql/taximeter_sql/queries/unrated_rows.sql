-- The events that have no price yet, whole, page by page. Parameters: tenant ('' for all), model ('' for all), log_id, partition, offset
-- (the last row of the page before; '', 0, 0 for the first), limit.
SELECT
    log_id, partition, offset, tenant, feature, model, adapter, operation, outcome, service_tier, source, event_id, time, request_id, root_request_id, hop, attempt,
    uncached_input, cache_read_gpu, cache_read_cpu, cache_read_disk, cache_read_provider, cache_write_5m, cache_write_1h, output, reasoning,
    pool, block_size, hit_blocks, blocks, attribution, worker_id, worker_sequence, gpu_seconds, queue_ms, ttft_ms, total_ms, attributes, reason
FROM usage_unrated
WHERE ({tenant:String} = '' OR tenant = {tenant:String}) AND ({model:String} = '' OR model = {model:String})
    AND (log_id, partition, offset) > ({log_id:String}, {partition:UInt32}, {offset:UInt64})
ORDER BY log_id, partition, offset
LIMIT {limit:UInt32}
