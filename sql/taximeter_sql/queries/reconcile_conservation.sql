-- produced = stored + duplicate + rejected, by tenant and hour of arrival, from the raw rows and from the rollup.
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
        count() AS produced,
        countIf(disposition = 'rated') AS rated,
        countIf(disposition = 'unrated') AS unrated,
        countIf(disposition = 'duplicate') AS duplicate,
        countIf(disposition = 'rejected') AS rejected,
        0 AS rolled
    FROM usage_log
    GROUP BY tenant, hour
    UNION ALL
    SELECT tenant, hour, 0, 0, 0, 0, 0, sum(events) AS rolled
    FROM usage_counts_hourly
    GROUP BY tenant, hour
)
GROUP BY tenant, hour
ORDER BY tenant, hour
