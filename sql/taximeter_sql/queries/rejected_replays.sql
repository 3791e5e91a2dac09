-- Which rejected messages were sent again, by whom, and what became of each? An empty disposition: the meter has not stored it yet.
SELECT p.log_id AS log_id, p.partition AS partition, p.offset AS offset, p.replay_log_id AS replay_log_id, p.replay_partition AS replay_partition,
    p.replay_offset AS replay_offset, p.changes AS changes, p.replayed_by AS replayed_by, p.replayed_at AS replayed_at,
    l.outcome AS disposition, l.reason AS reason
FROM rejected_replays AS p
LEFT JOIN
(
    SELECT log_id, partition, offset, toString(usage_log.disposition) AS outcome, reason
    FROM usage_log
    WHERE (log_id, partition, offset) IN (SELECT replay_log_id, replay_partition, replay_offset FROM rejected_replays)
) AS l ON l.log_id = p.replay_log_id AND l.partition = p.replay_partition AND l.offset = p.replay_offset
ORDER BY replayed_at
