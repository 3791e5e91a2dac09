-- What was mended, by tenant: late ratings, their repetitions, unrated rows that they settled, rejected messages sent again.
-- Parameters: tenant ('' for all), since (time of arrival).
SELECT tenant, sum(rated_later) AS rated_later, sum(rated_in_vain) AS rated_in_vain, sum(settled) AS settled, sum(replayed) AS replayed
FROM
(
    SELECT tenant,
        toInt64(countIf(disposition = 'rated')) AS rated_later,
        toInt64(countIf(disposition != 'rated')) AS rated_in_vain,
        toInt64(0) AS settled,
        toInt64(0) AS replayed
    FROM usage_log
    WHERE reason IN ('rated_later', 'still_unrated')
        AND arrived_at >= {since:DateTime64(6, 'UTC')} AND ({tenant:String} = '' OR tenant = {tenant:String})
    GROUP BY tenant
    UNION ALL
    SELECT tenant, 0, 0, toInt64(count()), 0
    FROM usage_log
    WHERE disposition = 'unrated'
        AND arrived_at >= {since:DateTime64(6, 'UTC')} AND ({tenant:String} = '' OR tenant = {tenant:String})
        AND (tenant, source, event_id) IN (SELECT tenant, source, event_id FROM usage_log WHERE disposition = 'rated' AND reason = 'rated_later')
    GROUP BY tenant
    UNION ALL
    SELECT tenant, 0, 0, 0, toInt64(count())
    FROM usage_log
    WHERE (log_id, partition, offset) IN (SELECT replay_log_id, replay_partition, replay_offset FROM rejected_replays)
        AND arrived_at >= {since:DateTime64(6, 'UTC')} AND ({tenant:String} = '' OR tenant = {tenant:String})
    GROUP BY tenant
)
GROUP BY tenant
