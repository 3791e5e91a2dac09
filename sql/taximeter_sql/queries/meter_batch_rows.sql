-- The rows of one stored batch, as they were inserted. Parameters: log_id, partition, first (its first offset).
SELECT * FROM usage_log
WHERE log_id = {log_id:String} AND partition = {partition:UInt32} AND batch_first = {first:UInt64}
ORDER BY offset
