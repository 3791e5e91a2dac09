-- Uses (is_use) and fillings, each summed over the epochs that share alike: a use bears 1 / parts of the filling. Over
-- billing_fold_epochs. Parameters: cells with the number of each one's tenant and SKU in arrays beside it; by_tenant, whether tenants
-- share equally, and not uses.
SELECT is_use, cell, filler_sku, parts, sum(tokens * times) AS tokens
FROM
(
    SELECT
        tokens,
        arraySort(arrayMap(
            (cell, times) -> (transform(cell, {cells:Array(UInt64)}, {tenants_of:Array(UInt32)}, toUInt32(0)), cell, times),
            arrayPushBack(hits.1, filler), arrayPushBack(hits.2, toUInt64(1)))) AS uses,
        arraySplit((use, before) -> use.1 != before.1, uses, arrayPushFront(arrayPopBack(uses), uses[1])) AS tenants_uses,
        arraySum(use -> use.3, uses) AS whole,
        arrayJoin(arrayPushBack(
            arrayFlatten(arrayMap(
                own -> arrayMap(
                    use -> (1, use.2, if({by_tenant:UInt8}, length(tenants_uses) * arraySum(one -> one.3, own), whole), use.3),
                    own),
                tenants_uses)),
            (0, filler, toUInt64(1), toUInt64(1))
        )) AS part,
        part.1 AS is_use, part.2 AS cell, part.3 AS parts, part.4 AS times,
        if(is_use, transform(filler, {cells:Array(UInt64)}, {skus_of:Array(UInt32)}, toUInt32(0)), 0) AS filler_sku
    FROM epochs
    WHERE warmed
)
GROUP BY is_use, cell, filler_sku, parts
