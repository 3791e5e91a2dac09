-- Where did the meter stop? The last batch that is stored of one partition of a log, and when (Unix milliseconds) it was inserted.
-- Parameters: log_id, partition.
SELECT argMax(batch_first, offset) AS first, max(batch_last) AS last, toUnixTimestamp64Milli(argMax(inserted_at, offset)) AS inserted_at_ms
FROM usage_log
WHERE log_id = {log_id:String} AND partition = {partition:UInt32}
HAVING count() > 0
