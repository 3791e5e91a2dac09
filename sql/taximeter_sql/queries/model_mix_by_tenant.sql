-- Which models does each tenant use, and for what share of its spend? Parameters: start, end (days, UTC; the end is not included).
SELECT
    tenant,
    model,
    currency,
    sum(usage_daily.events) AS events,
    sum(usage_daily.metered_pico) AS metered_pico,
    round(toFloat64(metered_pico) / nullIf(toFloat64(sum(metered_pico) OVER (PARTITION BY tenant, currency)), 0), 4) AS share
FROM usage_daily
WHERE day >= {start:Date} AND day < {end:Date}
GROUP BY tenant, model, currency
ORDER BY tenant, metered_pico DESC, model
