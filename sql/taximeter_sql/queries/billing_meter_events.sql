-- Which rated events of a span used something of what a payment provider's meter counts, and how much, in the order in which they were
-- inserted, behind a place in that order? Or (`sent`), up to that place, which of them does a later event void or amend? Parameters:
-- tenant ("" for all), start, end (not included), settled (rows that were inserted later are left for the next time), count (input,
-- output, tokens or requests), sent, after_ms, after_log, after_partition, after_offset.
WITH corrected AS
(
    SELECT tenant, source, arrayJoin([attributes['voids'], attributes['amends']]) AS event_id
    FROM usage_log
    WHERE disposition = 'rated' AND {tenant:String} IN ('', tenant)
        AND time >= {start:DateTime64(6, 'UTC')} AND time < {end:DateTime64(6, 'UTC')}
        AND inserted_at <= {settled:DateTime64(3, 'UTC')}
        AND (mapContains(attributes, 'voids') OR mapContains(attributes, 'amends'))
)
SELECT
    tenant, source, event_id, time,
    toUInt64(uncached_input) + cache_read_gpu + cache_read_cpu + cache_read_disk + cache_read_provider + cache_write_5m + cache_write_1h
        AS input_tokens,
    multiIf({count:String} = 'input', input_tokens, {count:String} = 'output', toUInt64(usage_log.output),
        {count:String} = 'tokens', input_tokens + usage_log.output, toUInt64(1)) AS value,
    toUnixTimestamp64Milli(inserted_at) AS inserted_ms, toString(log_id) AS log, partition, offset,
    (tenant, source, event_id) IN corrected AS taken_back
FROM usage_log
WHERE disposition = 'rated' AND {tenant:String} IN ('', tenant)
    AND time >= {start:DateTime64(6, 'UTC')} AND time < {end:DateTime64(6, 'UTC')}
    AND inserted_at <= {settled:DateTime64(3, 'UTC')}
    AND if({sent:UInt8}, taken_back, 1) AND {sent:UInt8} != ((inserted_ms, log, partition, offset)
        > ({after_ms:Int64}, {after_log:String}, {after_partition:UInt32}, {after_offset:UInt64}))
    AND value > 0
ORDER BY inserted_ms, log, partition, offset
