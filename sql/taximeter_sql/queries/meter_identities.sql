-- The identities that a partition has counted, to rebuild a dedupe index. Parameters: partition, log_id, after (offset), since.
SELECT identity, body, log_id, offset
FROM usage_log
WHERE partition = {partition:UInt32} AND disposition IN ('rated', 'unrated') AND arrived_at >= {since:DateTime64(3)}
    AND ({log_id:String} = '' OR (log_id = {log_id:String} AND toInt64(offset) > {after:Int64}))
ORDER BY arrived_at
