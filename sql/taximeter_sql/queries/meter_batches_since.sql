-- How many batches were inserted since a moment, counted to a limit? Parameters: since_ms (Unix milliseconds), limit.
-- A message stands in the log for 7 days, so a batch inserted now holds none that arrived more than 8 days ago.
SELECT count() FROM
(
    SELECT DISTINCT log_id, partition, batch_first
    FROM usage_log
    WHERE inserted_at >= fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC')
        AND arrived_at >= fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC') - INTERVAL 8 DAY
    LIMIT {limit:UInt32}
)
