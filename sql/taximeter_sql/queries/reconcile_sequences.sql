-- Which producer's numbers are missing? Each run of numbers that a worker used and that never arrived, and whom it worked for.
-- A number may have arrived before `since`; a gap is one only when no row at all holds it. Parameters: since (time of arrival).
WITH gaps AS
(
    SELECT worker_id, before + 1 AS gap_first, toInt64(worker_sequence) - 1 AS gap_last
    FROM
    (
        SELECT
            worker_id,
            worker_sequence,
            lagInFrame(toInt64(worker_sequence), 1, if({since:DateTime64(6, 'UTC')} > toDateTime64(0, 6, 'UTC'), toInt64(worker_sequence) - 1, toInt64(-1)))
                OVER (PARTITION BY worker_id ORDER BY worker_sequence ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS before
        FROM
        (
            SELECT DISTINCT worker_id, worker_sequence FROM usage_log
            WHERE worker_id != '' AND arrived_at >= {since:DateTime64(6, 'UTC')}
        )
    )
    WHERE toInt64(worker_sequence) > before + 1
)
SELECT worker_id, gap_first, gap_last FROM gaps ORDER BY worker_id, gap_first LIMIT 10001
