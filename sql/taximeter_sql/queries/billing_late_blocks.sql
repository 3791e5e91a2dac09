-- Blocks of usage that was stored after a later month was over in which they may still have lain in cache (31 days at most): those
-- later months, by the calendar of one time zone. Parameters: tenants, cards (names of versions), zone, start, end (not included).
SELECT tenant, arraySort(groupUniqArray(formatDateTime(month, '%Y-%m'))) AS months
FROM
(
    SELECT
        tenant,
        inserted_at,
        arrayJoin(arrayDistinct([
            addMonths(toStartOfMonth(time, {zone:String}), 1), toStartOfMonth(time + INTERVAL 31 DAY, {zone:String})
        ])) AS month
    FROM usage_log
    WHERE has({tenants:Array(String)}, tenant)
        AND time >= {start:DateTime64(6, 'UTC')} AND time < {end:DateTime64(6, 'UTC')}
        AND has({cards:Array(String)}, rate_card) AND disposition = 'rated' AND notEmpty(blocks)
)
WHERE inserted_at >= toDateTime(addMonths(month, 1), {zone:String})
GROUP BY tenant
ORDER BY tenant
