-- The identities that a partition has counted, to rebuild a dedupe index. Parameters: partition, log_id, after (offset), since_ms (Unix time).
SELECT identity, body, log_id, offset
FROM usage_log
WHERE partition = {partition:UInt32} AND disposition IN ('rated', 'unrated') AND arrived_at >= fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC')
    AND ({log_id:String} = '' OR (log_id = {log_id:String} AND toInt64(offset) > {after:Int64}))
ORDER BY arrived_at
