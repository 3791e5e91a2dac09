-- On which days (UTC) did messages arrive, by the raw rows or by the rollup? Parameters: tenant ('' for all), since.
SELECT DISTINCT day FROM
(
    SELECT DISTINCT toDate(arrived_at) AS day FROM usage_log
    WHERE arrived_at >= {since:DateTime64(6, 'UTC')} AND ({tenant:String} = '' OR tenant = {tenant:String})
    UNION ALL
    SELECT DISTINCT toDate(hour) AS day FROM usage_counts_hourly
    WHERE hour >= {since:DateTime64(6, 'UTC')} AND ({tenant:String} = '' OR tenant = {tenant:String})
)
ORDER BY day
