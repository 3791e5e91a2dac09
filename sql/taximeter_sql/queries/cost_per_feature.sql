-- What does each feature of a tenant cost? Parameters: start, end (days, UTC; the end is not included).
SELECT tenant, feature, currency, sum(usage_daily.events) AS events, sum(usage_daily.list_pico) AS list_pico, sum(usage_daily.metered_pico) AS metered_pico
FROM usage_daily
WHERE day >= {start:Date} AND day < {end:Date}
GROUP BY tenant, feature, currency
ORDER BY tenant, metered_pico DESC, feature
