-- produced = stored + duplicate + rejected, by tenant and hour of arrival, from the raw rows and from the rollup.
-- Parameters: tenant ('' for all), since.
SELECT
    tenant,
    hour,
    sum(produced) AS produced,
    sum(rated) AS rated,
    sum(unrated) AS unrated,
    sum(duplicate) AS duplicate,
    sum(rejected) AS rejected,
    sum(rolled) AS rolled
FROM
(
    SELECT
        tenant,
        toStartOfHour(arrived_at) AS hour,
        toInt64(count()) AS produced,
        toInt64(countIf(disposition = 'rated')) AS rated,
        toInt64(countIf(disposition = 'unrated')) AS unrated,
        toInt64(countIf(disposition = 'duplicate')) AS duplicate,
        toInt64(countIf(disposition = 'rejected')) AS rejected,
        toInt64(0) AS rolled
    FROM usage_log
    WHERE arrived_at >= {since:DateTime64(6, 'UTC')} AND ({tenant:String} = '' OR tenant = {tenant:String})
    GROUP BY tenant, hour
    UNION ALL
    SELECT tenant, hour, 0, 0, 0, 0, 0, toInt64(sum(events)) AS rolled
    FROM usage_counts_hourly
    WHERE hour >= {since:DateTime64(6, 'UTC')} AND ({tenant:String} = '' OR tenant = {tenant:String})
    GROUP BY tenant, hour
)
GROUP BY tenant, hour
ORDER BY tenant, hour
