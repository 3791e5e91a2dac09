-- What stands in the way of a tenant's invoice: events without a price, and hours in which the rollup differs from the raw rows.
-- Hours are compared whole, also where the period begins or ends within one. Parameters: tenant, start, end (not included).
SELECT
    (
        SELECT count() FROM usage_unrated
        WHERE tenant = {tenant:String} AND time >= {start:DateTime64(6, 'UTC')} AND time < {end:DateTime64(6, 'UTC')}
    ) AS unrated,
    (
        SELECT countIf(events_off != 0 OR metered_off != 0 OR list_off != 0) FROM
        (
            SELECT hour, sum(n) AS events_off, sum(metered) AS metered_off, sum(list) AS list_off FROM
            (
                SELECT toStartOfHour(time) AS hour, toInt128(count()) AS n, sum(toInt128(metered_pico)) AS metered, sum(toInt128(list_pico)) AS list
                FROM usage_events
                WHERE tenant = {tenant:String}
                    AND time >= toStartOfHour({start:DateTime64(6, 'UTC')})
                    AND time < toStartOfHour({end:DateTime64(6, 'UTC')}) + INTERVAL 1 HOUR
                GROUP BY hour
                UNION ALL
                SELECT hour, -sum(toInt128(events)) AS n, -sum(metered_pico) AS metered, -sum(list_pico) AS list
                FROM usage_hourly
                WHERE tenant = {tenant:String}
                    AND hour >= toStartOfHour({start:DateTime64(6, 'UTC')})
                    AND hour < toStartOfHour({end:DateTime64(6, 'UTC')}) + INTERVAL 1 HOUR
                GROUP BY hour
            )
            GROUP BY hour
        )
    ) AS rollup_off
