-- Is every message there once? For each partition of a log: rows, distinct offsets, and the span they should fill.
-- Parameters: since (time of arrival).
SELECT log_id, partition, count() AS rows, uniqExact(offset) AS offsets, min(offset) AS first, max(offset) AS last
FROM usage_log
WHERE arrived_at >= {since:DateTime64(6, 'UTC')}
GROUP BY log_id, partition
ORDER BY log_id, partition
