-- How many input tokens came from a cache, and what did that save whoever hit, before a policy shares it out? Parameters: start, end
-- (days, UTC; the end is not included).
SELECT
    tenant,
    model,
    currency,
    sum(cache_read_gpu + cache_read_cpu + cache_read_disk + cache_read_provider) AS cached_tokens,
    sum(uncached_input + cache_write_5m + cache_write_1h) + cached_tokens AS input_tokens,
    round(cached_tokens / nullIf(input_tokens, 0), 4) AS hit_rate,
    sum(usage_daily.saving_pico) AS saving_pico
FROM usage_daily
WHERE day >= {start:Date} AND day < {end:Date}
GROUP BY tenant, model, currency
ORDER BY saving_pico DESC, tenant, model
