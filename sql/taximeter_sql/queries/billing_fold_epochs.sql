-- Residencies of cache blocks that were hit at least once, over the rows of billing_fold_rows: whether its filler was seen and which
-- cell that is, the block's tokens, and how often each cell hit it. A fill opens a residency, and so does a hit after longer than
-- ttl_us (0: no limit) or with another length. Parameters also: ttl_us, chunk, chunks; only the blocks of one chunk are folded, so
-- that room is bounded.
SELECT
    NOT epoch[1].5 AS warmed,
    epoch[1].6 AS filler,
    epoch[1].7 AS tokens,
    arrayMap(use -> use.6, arrayFilter(use -> use.5, epoch)) AS cells,
    arrayReduce('sumMap', [cells], [arrayMap(cell -> toUInt64(1), cells)]) AS hits
FROM
(
    SELECT arrayJoin(arraySplit(
        (use, before) -> NOT use.5 OR use.7 != before.7 OR ({ttl_us:Int64} > 0 AND use.1 - before.1 > {ttl_us:Int64}),
        uses,
        arrayPushFront(arrayPopBack(uses), uses[1])
    )) AS epoch
    FROM
    (
        SELECT arraySort(groupArray((time_us, hit_blocks, event, place, hit, cell, block_tokens))) AS uses
        FROM
        (
            SELECT
                sipHash128(pool, model, adapter, used.1) AS block,
                cell, time_us, toUInt64(block_size) AS block_tokens, hit_blocks, used.2 AS place, place <= hit_blocks AS hit,
                concat(tenant, '\n', source, '\n', event_id, '\n0') AS event
            FROM
            (
                SELECT
                    pool, model, adapter, cell, tenant, time_us, block_size, hit_blocks, source, event_id,
                    arrayJoin(arrayFilter(
                        one -> {chunks:UInt64} = 1 OR cityHash64(one.1) % {chunks:UInt64} = {chunk:UInt64},
                        arrayMap((hash, at) -> (hash, at), arraySlice(blocks, 1, hit_blocks + filled_blocks),
                            range(1, toUInt64(hit_blocks + filled_blocks + 1)))
                    )) AS used
                FROM folded
                WHERE exact
            )
        )
        GROUP BY block
    )
)
WHERE notEmpty(cells)
