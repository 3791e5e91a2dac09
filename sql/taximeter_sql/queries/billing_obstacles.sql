-- What stands in the way of these tenants' invoices: events without a price, and hours in which the rollup differs from the raw
-- rows. Hours are compared whole, also where a period begins or ends within one. A tenant without a row has neither.
-- Parameters: tenants, starts, ends (not included), arrays of one length.
WITH
    {tenants:Array(String)} AS wanted,
    {starts:Array(DateTime64(6, 'UTC'))} AS begins,
    {ends:Array(DateTime64(6, 'UTC'))} AS stops
SELECT tenant, sum(unrated) AS unrated, sum(rollup_off) AS rollup_off FROM
(
    SELECT tenant, count() AS unrated, 0 AS rollup_off FROM usage_unrated
    WHERE has(wanted, tenant) AND time >= begins[indexOf(wanted, tenant)] AND time < stops[indexOf(wanted, tenant)]
    GROUP BY tenant
    UNION ALL
    SELECT tenant, 0 AS unrated, countIf(events_off != 0 OR metered_off != 0 OR list_off != 0) AS rollup_off FROM
    (
        SELECT tenant, hour, sum(n) AS events_off, sum(metered) AS metered_off, sum(list) AS list_off FROM
        (
            SELECT tenant, toStartOfHour(time) AS hour, toInt128(count()) AS n, sum(toInt128(metered_pico)) AS metered, sum(toInt128(list_pico)) AS list
            FROM usage_events
            WHERE has(wanted, tenant)
                AND time >= toStartOfHour(begins[indexOf(wanted, tenant)])
                AND time < toStartOfHour(stops[indexOf(wanted, tenant)]) + INTERVAL 1 HOUR
            GROUP BY tenant, hour
            UNION ALL
            SELECT tenant, hour, -sum(toInt128(events)) AS n, -sum(metered_pico) AS metered, -sum(list_pico) AS list
            FROM usage_hourly
            WHERE has(wanted, tenant)
                AND hour >= toStartOfHour(begins[indexOf(wanted, tenant)])
                AND hour < toStartOfHour(stops[indexOf(wanted, tenant)]) + INTERVAL 1 HOUR
            GROUP BY tenant, hour
        )
        GROUP BY tenant, hour
    )
    GROUP BY tenant
)
GROUP BY tenant
HAVING unrated > 0 OR rollup_off > 0
ORDER BY tenant
