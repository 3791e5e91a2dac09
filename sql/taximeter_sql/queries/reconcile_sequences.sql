-- Which producer's numbers are missing? Each run of numbers that a worker used and that never arrived.
SELECT worker_id, before + 1 AS gap_first, worker_sequence - 1 AS gap_last
FROM
(
    SELECT
        worker_id,
        worker_sequence,
        lagInFrame(toInt64(worker_sequence), 1, toInt64(-1)) OVER (PARTITION BY worker_id ORDER BY worker_sequence ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS before
    FROM (SELECT DISTINCT worker_id, worker_sequence FROM usage_log WHERE worker_id != '')
)
WHERE toInt64(worker_sequence) > before + 1
ORDER BY worker_id, gap_first
LIMIT 1000
