-- On which days (UTC) is there anything to compare? Days of event time, in the raw rows or a rollup.
-- Parameters: tenant ('' for all), since.
SELECT DISTINCT day FROM
(
    SELECT DISTINCT toDate(time) AS day FROM usage_events
    WHERE time >= {since:DateTime64(6, 'UTC')} AND ({tenant:String} = '' OR tenant = {tenant:String})
    UNION ALL
    SELECT DISTINCT toDate(hour) AS day FROM usage_hourly
    WHERE hour >= {since:DateTime64(6, 'UTC')} AND ({tenant:String} = '' OR tenant = {tenant:String})
    UNION ALL
    SELECT DISTINCT day FROM usage_daily
    WHERE day >= {since:DateTime64(6, 'UTC')} AND ({tenant:String} = '' OR tenant = {tenant:String})
)
ORDER BY day
