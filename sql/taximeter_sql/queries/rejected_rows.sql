-- Rejected messages one by one, newest first, and whether the same event was counted since. Parameters: tenant ('' for all),
-- reason ('' for all), since (time of arrival), limit.
SELECT r.log_id AS log_id, r.partition AS partition, r.offset AS offset, r.arrived_at AS arrived_at, r.tenant AS tenant, r.reason AS reason,
    r.source AS source, r.event_id AS event_id, c.counted AS counted
FROM
(
    SELECT log_id, partition, offset, arrived_at, tenant, reason, source, event_id, body
    FROM usage_rejected
    WHERE ({tenant:String} = '' OR tenant = {tenant:String}) AND ({reason:String} = '' OR reason = {reason:String})
        AND arrived_at >= {since:DateTime64(6, 'UTC')}
    ORDER BY arrived_at DESC, log_id, partition, offset DESC
    LIMIT {limit:UInt32}
) AS r
LEFT JOIN
(
    SELECT tenant, source, event_id, body, any(toString(usage_log.disposition)) AS counted
    FROM usage_log
    WHERE disposition IN ('rated', 'unrated') AND reason != 'rated_later'
        AND (tenant, source, event_id) IN (SELECT tenant, source, event_id FROM usage_rejected WHERE event_id != '')
    GROUP BY tenant, source, event_id, body
) AS c ON r.tenant = c.tenant AND r.source = c.source AND r.event_id = c.event_id AND r.body = c.body
ORDER BY arrived_at DESC, log_id, partition, offset DESC
