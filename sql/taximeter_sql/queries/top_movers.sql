-- Whose spend changed most against the month before? Parameters: month (its first day, UTC), top (how many).
SELECT
    tenant,
    currency,
    sumIf(usage_daily.metered_pico, toStartOfMonth(day) = {month:Date}) AS metered_pico,
    sumIf(usage_daily.metered_pico, toStartOfMonth(day) = {month:Date} - INTERVAL 1 MONTH) AS before_pico,
    metered_pico - before_pico AS change_pico
FROM usage_daily
WHERE day >= {month:Date} - INTERVAL 1 MONTH AND day < {month:Date} + INTERVAL 1 MONTH
GROUP BY tenant, currency
ORDER BY abs(change_pico) DESC, tenant
LIMIT {top:UInt32}
