-- What did each tenant spend in each month? Parameters: time_zone (IANA name).
SELECT
    tenant,
    formatDateTime(time, '%Y-%m', {time_zone:String}) AS month,
    currency,
    count() AS events,
    sum(toInt128(usage_events.list_pico)) AS list_pico,
    sum(toInt128(usage_events.metered_pico)) AS metered_pico,
    list_pico - metered_pico AS saving_pico
FROM usage_events
GROUP BY tenant, month, currency
ORDER BY tenant, month, currency
