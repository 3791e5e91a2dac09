-- What did one turn use and cost? Each event of it once (as it stands now: rated, else unrated, else rejected), in order of its hops.
-- Rows of another root are requests whose own id is the one asked for. Parameters: id, tenant (empty: any), since (of arrival).
SELECT
    tenant, root_request_id, request_id, hop, attempt, source, event_id, time, feature, operation, model, adapter, outcome,
    disposition, reason, uncached_input, cache_read_gpu, cache_read_cpu, cache_read_disk, cache_read_provider, cache_write_5m,
    cache_write_1h, output, reasoning, currency, rate_card, list_pico, metered_pico, total_ms,
    attributes['parent_request_id'] AS parent_request_id
FROM usage_log
WHERE (root_request_id = {id:String} OR request_id = {id:String})
    AND disposition IN ('rated', 'unrated', 'rejected')
    AND ({tenant:String} = '' OR tenant = {tenant:String})
    AND arrived_at >= {since:DateTime64(3, 'UTC')}
ORDER BY disposition, arrived_at
LIMIT 1 BY tenant, source, event_id
