-- Blocks of usage that was stored after a month was over in which they may have lain in cache (31 days at most): those months, in
-- UTC. Parameters: tenants, cards (names of versions), start, end (not included).
SELECT tenant, arraySort(groupUniqArray(formatDateTime(month, '%Y-%m'))) AS months
FROM
(
    SELECT
        tenant,
        inserted_at,
        toStartOfMonth(time, 'UTC') AS first,
        arrayJoin(arrayDistinct([first, addMonths(first, 1), toStartOfMonth(time + INTERVAL 31 DAY, 'UTC')])) AS month
    FROM usage_log
    WHERE has({tenants:Array(String)}, tenant)
        AND time >= {start:DateTime64(6, 'UTC')} AND time < {end:DateTime64(6, 'UTC')}
        AND has({cards:Array(String)}, rate_card) AND disposition = 'rated' AND notEmpty(blocks)
)
WHERE inserted_at >= toDateTime(addMonths(month, 1), 'UTC')
GROUP BY tenant
ORDER BY tenant
