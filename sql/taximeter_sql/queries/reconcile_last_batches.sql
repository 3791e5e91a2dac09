-- Which last batch of a partition holds rows of these tenants? A meter that was cut off inserts it again, under its token.
-- Parameters: tenants (Array(String)), since_ms (inserted, Unix milliseconds).
SELECT log_id, partition, batch_first, any(batch_last) AS last, toUnixTimestamp64Milli(max(usage_log.inserted_at)) AS inserted_at_ms
FROM usage_log
WHERE (log_id, partition, batch_first) IN (SELECT log_id, partition, max(batch_first) FROM usage_log GROUP BY log_id, partition)
    AND inserted_at >= fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC')
GROUP BY log_id, partition, batch_first
HAVING countIf(has({tenants:Array(String)}, tenant)) > 0
ORDER BY log_id, partition
