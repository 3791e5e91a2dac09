-- Which cells of the hourly counts differ from the raw rows, and by how much (raw less rollup)? None when all is well.
-- raw_state changes when a raw row comes to the cell. Parameters: tenant ('' for all), since, until (time of arrival, until not included).
SELECT hour, tenant, disposition, reason, sum(events_) AS events, groupBitXor(raw_state_) AS raw_state
FROM
(
    SELECT toStartOfHour(arrived_at) AS hour, tenant, toString(usage_log.disposition) AS disposition, reason, toInt128(count()) AS events_,
        groupBitXor(cityHash64(log_id, partition, offset)) AS raw_state_
    FROM usage_log
    WHERE arrived_at >= {since:DateTime64(6, 'UTC')} AND arrived_at < {until:DateTime64(6, 'UTC')}
        AND ({tenant:String} = '' OR tenant = {tenant:String})
    GROUP BY hour, tenant, disposition, reason
    UNION ALL
    SELECT hour, tenant, disposition, reason, -sum(toInt128(events)) AS events_, toUInt64(0) AS raw_state_
    FROM usage_counts_hourly
    WHERE hour >= {since:DateTime64(6, 'UTC')} AND hour < {until:DateTime64(6, 'UTC')}
        AND ({tenant:String} = '' OR tenant = {tenant:String})
    GROUP BY hour, tenant, disposition, reason
)
GROUP BY hour, tenant, disposition, reason
HAVING events != 0
ORDER BY hour, tenant, disposition, reason
