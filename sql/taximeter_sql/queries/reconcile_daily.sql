-- Which cells of the daily rollup differ from the raw rows, and by how much (raw less rollup)? None when all is well.
-- raw_state changes when a raw row comes to the cell. Parameters: tenant ('' for all), since, until (event time in whole days, until not included).
SELECT
    day, tenant, feature, model, operation, service_tier, currency,
    sum(events_) AS events, sum(uncached_input_) AS uncached_input, sum(cache_read_gpu_) AS cache_read_gpu, sum(cache_read_cpu_) AS cache_read_cpu,
    sum(cache_read_disk_) AS cache_read_disk, sum(cache_read_provider_) AS cache_read_provider, sum(cache_write_5m_) AS cache_write_5m, sum(cache_write_1h_) AS cache_write_1h,
    sum(output_) AS output, sum(reasoning_) AS reasoning, sum(list_pico_) AS list_pico, sum(metered_pico_) AS metered_pico,
    sum(saving_pico_) AS saving_pico,
    groupBitXor(raw_state_) AS raw_state
FROM
(
    SELECT
        toDate(time) AS day, tenant, feature, model, operation, service_tier, currency,
        toInt128(count()) AS events_, sum(toInt128(uncached_input)) AS uncached_input_, sum(toInt128(cache_read_gpu)) AS cache_read_gpu_,
        sum(toInt128(cache_read_cpu)) AS cache_read_cpu_, sum(toInt128(cache_read_disk)) AS cache_read_disk_, sum(toInt128(cache_read_provider)) AS cache_read_provider_,
        sum(toInt128(cache_write_5m)) AS cache_write_5m_, sum(toInt128(cache_write_1h)) AS cache_write_1h_, sum(toInt128(output)) AS output_,
        sum(toInt128(reasoning)) AS reasoning_, sum(toInt128(list_pico)) AS list_pico_, sum(toInt128(metered_pico)) AS metered_pico_,
        sum(toInt128(list_pico) - toInt128(metered_pico)) AS saving_pico_,
        groupBitXor(cityHash64(log_id, partition, offset)) AS raw_state_
    FROM usage_events
    WHERE time >= {since:DateTime64(6, 'UTC')} AND time < {until:DateTime64(6, 'UTC')}
        AND ({tenant:String} = '' OR tenant = {tenant:String})
    GROUP BY day, tenant, feature, model, operation, service_tier, currency
    UNION ALL
    SELECT
        day, tenant, feature, model, operation, service_tier, currency,
        -sum(toInt128(events)) AS events_, -sum(toInt128(uncached_input)) AS uncached_input_, -sum(toInt128(cache_read_gpu)) AS cache_read_gpu_,
        -sum(toInt128(cache_read_cpu)) AS cache_read_cpu_, -sum(toInt128(cache_read_disk)) AS cache_read_disk_, -sum(toInt128(cache_read_provider)) AS cache_read_provider_,
        -sum(toInt128(cache_write_5m)) AS cache_write_5m_, -sum(toInt128(cache_write_1h)) AS cache_write_1h_, -sum(toInt128(output)) AS output_,
        -sum(toInt128(reasoning)) AS reasoning_, -sum(list_pico) AS list_pico_, -sum(metered_pico) AS metered_pico_,
        -sum(saving_pico) AS saving_pico_,
        toUInt64(0) AS raw_state_
    FROM usage_daily
    WHERE day >= {since:DateTime64(6, 'UTC')} AND day < {until:DateTime64(6, 'UTC')}
        AND ({tenant:String} = '' OR tenant = {tenant:String})
    GROUP BY day, tenant, feature, model, operation, service_tier, currency
)
GROUP BY day, tenant, feature, model, operation, service_tier, currency
HAVING events != 0 OR uncached_input != 0 OR cache_read_gpu != 0 OR cache_read_cpu != 0
    OR cache_read_disk != 0 OR cache_read_provider != 0 OR cache_write_5m != 0 OR cache_write_1h != 0
    OR output != 0 OR reasoning != 0 OR list_pico != 0 OR metered_pico != 0
    OR saving_pico != 0
ORDER BY day, tenant, feature, model, operation, service_tier, currency
