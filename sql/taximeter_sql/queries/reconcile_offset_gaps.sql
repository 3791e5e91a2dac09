-- Which messages of one partition are missing? Each run of offsets between two that are stored. Parameters: log_id, partition, since.
SELECT before + 1 AS gap_first, offset_ - 1 AS gap_last
FROM
(
    SELECT offset_, lagInFrame(offset_, 1, offset_ - 1) OVER (ORDER BY offset_ ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS before
    FROM
    (
        SELECT DISTINCT toInt64(offset) AS offset_ FROM usage_log
        WHERE log_id = {log_id:String} AND partition = {partition:UInt32} AND arrived_at >= {since:DateTime64(6, 'UTC')}
    )
)
WHERE offset_ > before + 1
ORDER BY gap_first
LIMIT 1000
