-- Token-microseconds for which blocks were kept in [start, end), by who bears 1 / parts of them and whose price they have: in each
-- residency who filled the block (by_creator, or nobody hit it) or those who hit it by hits, in this part of it where somebody did.
-- Over the rows of billing_fold_rows. Parameters also: ttl_us, start, end (microseconds since the epoch), chunk, chunks; cells with
-- the number of each one's SKU in an array beside it. A use without tokens is no use but the moment at which a block had left.
SELECT borne_by, price_of, parts, sum(token_us * times) AS token_us
FROM
(
    SELECT
        token_us,
        arrayJoin(if(
            warmed AND ({by_creator:UInt8} OR used_at < {start:Int64} OR empty(hits.1)),
            [(filler, toUInt64(1), toUInt64(1))],
            arrayMap((one, times) -> (one, times, arraySum(hits.2)), hits.1, hits.2))) AS part,
        part.1 AS borne_by, part.2 AS times, part.3 AS parts,
        transform(if(warmed, filler, borne_by), {cells:Array(UInt64)}, {skus_of:Array(UInt32)}, toUInt32(0)) AS price_of
    FROM
    (
        SELECT
            NOT epoch[1].2 AS warmed,
            epoch[1].3 AS filler,
            arrayMax(use -> if(use.4 > 0, use.1, 0), epoch) AS used_at,
            arrayMin(use -> if(use.4 > 0, {end:Int64}, use.1), epoch) AS left_at,
            -- Where nobody saw the filler all uses are hits: if none is in this part, all of them came before it.
            arrayMap(use -> use.3, arrayFilter(
                use -> use.2 AND NOT (warmed AND {by_creator:UInt8}) AND (use.1 >= {start:Int64} OR used_at < {start:Int64}),
                epoch)) AS hit_by,
            arrayReduce('sumMap', [hit_by], [arrayMap(one -> toUInt64(1), hit_by)]) AS hits,
            least({end:Int64}, epoch[-1].5, used_at + {ttl_us:Int64}, left_at) AS gone_at,
            toInt128(epoch[1].4) * greatest(toInt64(0), gone_at - greatest({start:Int64}, epoch[1].1)) AS token_us
        FROM
        (
            SELECT arrayJoin(arraySplit(
                (use, before) -> use.4 > 0
                    AND (NOT use.2 OR use.4 != before.4 OR use.1 - before.1 > {ttl_us:Int64}),
                uses,
                arrayPushFront(arrayPopBack(uses), uses[1])
            )) AS epoch
            FROM
            (
                SELECT
                    arraySort(groupArray((at_us, leading, event, place, hit, cell, block_tokens))) AS sorted,
                    arrayMap(
                        (use, next_at) -> (use.1, use.5, use.6, use.7, next_at),
                        sorted, arrayPushBack(arrayPopFront(arrayMap(use -> use.1, sorted)), {end:Int64})) AS uses
                FROM
                (
                    SELECT
                        sipHash128(pool, model, adapter, used.1) AS block,
                        cell, used.2 AS place, used.3 AS gone, NOT gone AND place <= hit_blocks AS hit,
                        if(gone, evicted_us, time_us) AS at_us,
                        if(gone, 0, toUInt64(hit_blocks)) AS leading,
                        if(gone, 0, toUInt64(block_size)) AS block_tokens,
                        if(gone, '', concat(tenant, '\n', source, '\n', event_id, '\n0')) AS event
                    FROM
                    (
                        SELECT
                            pool, model, adapter, cell, tenant, time_us, evicted_us, block_size, hit_blocks, source, event_id,
                            arrayMap((hash, at) -> (hash, at, 0), arraySlice(blocks, 1, hit_blocks + filled_blocks),
                                range(1, toUInt64(hit_blocks + filled_blocks + 1))) AS explained,
                            arrayJoin(arrayFilter(
                                one -> {chunks:UInt64} = 1 OR cityHash64(one.1) % {chunks:UInt64} = {chunk:UInt64},
                                if(evicted_us < 0, explained, arrayConcat(explained, arrayMap(
                                    one -> (one.1, one.2, 1), arrayFilter(one -> one.2 > hit_blocks, explained))))
                            )) AS used
                        FROM folded
                        WHERE exact
                    )
                )
                GROUP BY block
            )
        )
        WHERE epoch[1].4 > 0
    )
    WHERE token_us > 0
)
GROUP BY borne_by, price_of, parts
