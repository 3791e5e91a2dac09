-- Which usage has no price, why, and how much of it is held off invoices?
SELECT tenant, model, reason, count() AS events, sum(uncached_input + cache_read_gpu + cache_read_cpu + cache_read_disk + cache_read_provider + cache_write_5m + cache_write_1h) AS input_tokens, sum(usage_unrated.output) AS output_tokens, min(time) AS first_time, max(time) AS last_time
FROM usage_unrated
GROUP BY tenant, model, reason
ORDER BY events DESC, tenant, model
