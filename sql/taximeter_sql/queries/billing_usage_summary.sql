-- What has a tenant used in a span, by feature and model? Parameters: tenant, start, end (not included).
SELECT
    feature,
    model,
    currency,
    count() AS events,
    sum(uncached_input) + sum(cache_write_5m) + sum(cache_write_1h) AS uncached_input_tokens,
    sum(cache_read_gpu) + sum(cache_read_cpu) + sum(cache_read_disk) + sum(cache_read_provider) AS cached_input_tokens,
    sum(usage_events.output) AS output_tokens,
    sum(toInt128(usage_events.list_pico)) AS list_pico,
    sum(toInt128(usage_events.metered_pico)) AS metered_pico
FROM usage_events
WHERE tenant = {tenant:String} AND time >= {start:DateTime64(6, 'UTC')} AND time < {end:DateTime64(6, 'UTC')}
GROUP BY feature, model, currency
ORDER BY feature, model, currency
