-- Does the hourly rollup agree with the raw rows? One line for each tenant and hour that differs; none when all is well.
SELECT tenant, hour, currency, sum(n) AS events_off, sum(list_) AS list_pico_off, sum(metered_) AS metered_pico_off, abs(sum(uncached_input_)) + abs(sum(cache_read_gpu_)) + abs(sum(cache_read_cpu_)) + abs(sum(cache_read_disk_)) + abs(sum(cache_read_provider_)) + abs(sum(cache_write_5m_)) + abs(sum(cache_write_1h_)) + abs(sum(output_)) + abs(sum(reasoning_)) AS tokens_off
FROM
(
    SELECT tenant, toStartOfHour(time) AS hour, currency, toInt128(count()) AS n, sum(toInt128(list_pico)) AS list_, sum(toInt128(metered_pico)) AS metered_,
        sum(toInt128(uncached_input)) AS uncached_input_, sum(toInt128(cache_read_gpu)) AS cache_read_gpu_, sum(toInt128(cache_read_cpu)) AS cache_read_cpu_, sum(toInt128(cache_read_disk)) AS cache_read_disk_, sum(toInt128(cache_read_provider)) AS cache_read_provider_, sum(toInt128(cache_write_5m)) AS cache_write_5m_, sum(toInt128(cache_write_1h)) AS cache_write_1h_, sum(toInt128(output)) AS output_, sum(toInt128(reasoning)) AS reasoning_
    FROM usage_events
    GROUP BY tenant, hour, currency
    UNION ALL
    SELECT tenant, hour, currency, -sum(toInt128(events)) AS n, -sum(list_pico) AS list_, -sum(metered_pico) AS metered_,
        -sum(toInt128(uncached_input)) AS uncached_input_, -sum(toInt128(cache_read_gpu)) AS cache_read_gpu_, -sum(toInt128(cache_read_cpu)) AS cache_read_cpu_, -sum(toInt128(cache_read_disk)) AS cache_read_disk_, -sum(toInt128(cache_read_provider)) AS cache_read_provider_, -sum(toInt128(cache_write_5m)) AS cache_write_5m_, -sum(toInt128(cache_write_1h)) AS cache_write_1h_, -sum(toInt128(output)) AS output_, -sum(toInt128(reasoning)) AS reasoning_
    FROM usage_hourly
    GROUP BY tenant, hour, currency
)
GROUP BY tenant, hour, currency
HAVING events_off != 0 OR list_pico_off != 0 OR metered_pico_off != 0 OR tokens_off != 0
ORDER BY tenant, hour
