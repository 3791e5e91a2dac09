-- How far is the log stored? The offset behind the last message of each partition. Parameters: log_id.
SELECT partition, max(offset) + 1 AS reached FROM usage_log WHERE log_id = {log_id:String} GROUP BY partition
