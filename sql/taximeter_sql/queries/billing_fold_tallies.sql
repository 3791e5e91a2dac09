-- What each tenant used in each cache pool, by what chooses its price; an example of the input's length finds the price. Over the
-- rows of billing_fold_rows.
SELECT
    pool, tenant, rate_card, feature, model, adapter, operation, service_tier, region, exact, tier, any(cell), any(input_tokens),
    sum(if(exact, toUInt64(hit_blocks) * block_size, 0)) AS hit_tokens,
    sum(if(exact, toUInt64(filled_blocks) * block_size, 0)) AS filled_tokens,
    sum(toUInt64(uncached_input)) AS uncached_tokens,
    sum(toUInt64(cache_read_gpu)), sum(toUInt64(cache_read_cpu)), sum(toUInt64(cache_read_disk)), sum(toUInt64(cache_read_provider)),
    sum(toUInt64(cache_write_5m)), sum(toUInt64(cache_write_1h)),
    sum(if(exact, toUInt64(hit_blocks) + filled_blocks, 0))
FROM folded
GROUP BY pool, tenant, rate_card, feature, model, adapter, operation, service_tier, region, band, exact, tier
