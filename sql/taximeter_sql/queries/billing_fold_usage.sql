-- What has each tenant used in each cache pool, by invoice line, span and what chooses its price, and what did its events cost? An
-- example of the input's length finds the price, one of an event names what has none, and the first time says in which span it is.
-- Over the rows of billing_fold_rows. Parameters also: cut_tenants, cuts (for each of these tenants, the first for all others, the
-- moments, in microseconds since the epoch, at which its period is cut into spans).
SELECT
    tenant, rate_card, feature, model, adapter, operation, service_tier, region, pool, exact, tier,
    arrayCount(cut -> time_us >= cut, {cuts:Array(Array(Int64))}[toUInt32(transform(
        tenant, {cut_tenants:Array(String)}, range(1, toUInt32(length({cut_tenants:Array(String)}) + 1)), toUInt32(1)))]) AS segment,
    any(cell), any(input_tokens), any(event_id), min(time_us),
    sum(if(exact, toUInt64(hit_blocks) * block_size, 0)) AS hit_tokens,
    sum(if(exact, toUInt64(filled_blocks) * block_size, 0)) AS filled_tokens,
    sum(if(exact, toUInt64(hit_blocks) + filled_blocks, 0)) AS block_uses,
    count(), sum(toInt128(list_pico)), sum(toInt128(metered_pico)),
    sum(toUInt64(uncached_input)),
    sum(toUInt64(cache_read_gpu)), sum(toUInt64(cache_read_cpu)), sum(toUInt64(cache_read_disk)), sum(toUInt64(cache_read_provider)),
    sum(toUInt64(cache_write_5m)), sum(toUInt64(cache_write_1h)),
    sum(toUInt64(output)), sum(toUInt64(reasoning)), countIf(output > 0 OR input_tokens > 0),
    sum(toUInt64OrZero(attributes['search_units'])),
    sum(toInt64(roundBankers(gpu_seconds * 1000000))),
    sum(toUInt64OrZero(attributes['adapter_hours']))
FROM folded
GROUP BY tenant, rate_card, feature, model, adapter, operation, service_tier, region, pool, exact, tier, band, segment
