-- Lots (is_lot) and fillings, each summed over the epochs that split alike: by gross and shared saving for each of their tokens.
-- Over billing_fold_epochs. Parameters: cells with, in arrays beside it, the number of each one's tenant and SKU and what a hit saves
-- a token; keep_own, whether a filler's own hits are not shared.
SELECT is_lot, cell, own, warmed, filler_sku, gross, shared, sum(tokens * times) AS tokens
FROM
(
    SELECT
        warmed, tokens,
        transform(filler, {cells:Array(UInt64)}, {tenants_of:Array(UInt32)}, toUInt32(0)) AS filler_tenant,
        arrayMap(cell -> transform(cell, {cells:Array(UInt64)}, {tenants_of:Array(UInt32)}, toUInt32(0)), hits.1) AS tenants_hit,
        arrayMap((cell, times) -> toInt128(times) * transform(cell, {cells:Array(UInt64)}, {saves:Array(Int64)}, toInt64(0)),
            hits.1, hits.2) AS units,
        arraySum(units) AS gross,
        gross - if({keep_own:UInt8} AND warmed,
            arraySum((unit, tenant) -> if(tenant = filler_tenant, unit, 0), units, tenants_hit), 0) AS shared,
        arrayJoin(arrayConcat(
            arrayMap((cell, times, tenant) -> (1, cell, warmed AND tenant = filler_tenant, times), hits.1, hits.2, tenants_hit),
            if(warmed, [(0, filler, 0, toUInt64(1))], [])
        )) AS part,
        part.1 AS is_lot, part.2 AS cell, part.3 AS own, part.4 AS times,
        if(warmed, transform(filler, {cells:Array(UInt64)}, {skus_of:Array(UInt32)}, toUInt32(0)), 0) AS filler_sku
    FROM epochs
)
GROUP BY is_lot, cell, own, warmed, filler_sku, gross, shared
