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
            warmed AND ({by_creator:UInt8} OR empty(hits.1)),
            [(filler, toUInt64(1), toUInt64(1))],
            arrayMap((one, times) -> (one, times, arraySum(hits.2)), hits.1, hits.2))) AS part,
        part.1 AS borne_by, part.2 AS times, part.3 AS parts,
        transform(if(warmed, filler, borne_by), {cells:Array(UInt64)}, {skus_of:Array(UInt32)}, toUInt32(0)) AS price_of
    FROM
    (
        SELECT
            NOT epoch[1].5 AS warmed,
            epoch[1].6 AS filler,
            arrayFilter(use -> use.7 > 0, epoch) AS own,
            arrayMap(use -> use.6, arrayFilter(use -> use.5 AND use.1 >= {start:Int64}, own)) AS hit_now,
            if(warmed OR notEmpty(hit_now), hit_now, arrayMap(use -> use.6, arrayFilter(use -> use.5, own))) AS hit_by,
            arrayReduce('sumMap', [hit_by], [arrayMap(one -> toUInt64(1), hit_by)]) AS hits,
            least({end:Int64}, next_at, own[-1].1 + {ttl_us:Int64},
                arrayMin(arrayMap(use -> if(use.7 > 0, {end:Int64}, use.1), epoch))) AS gone_at,
            toInt128(own[1].7) * greatest(toInt64(0), gone_at - greatest({start:Int64}, own[1].1)) AS token_us
        FROM
        (
            SELECT
                arraySplit(
                    (use, before) -> use.7 > 0
                        AND (NOT use.5 OR use.7 != before.7 OR use.1 - before.1 > {ttl_us:Int64}),
                    uses,
                    arrayPushFront(arrayPopBack(uses), uses[1])
                ) AS epochs,
                arrayPushBack(arrayMap(epoch -> epoch[1].1, arrayPopFront(epochs)), {end:Int64}) AS ends,
                arrayJoin(arrayZip(epochs, ends)) AS ended,
                ended.1 AS epoch, ended.2 AS next_at
            FROM
            (
                SELECT arraySort(groupArray((at_us, leading, event, place, hit, cell, block_tokens))) AS uses
                FROM
                (
                    SELECT
                        sipHash128(pool, model, adapter, used.1) AS block,
                        cell, used.2 AS place, place <= hit_blocks AS hit,
                        arrayJoin(if(evicted_us >= 0 AND NOT hit, [0, 1], [0])) AS gone,
                        if(gone, evicted_us, time_us) AS at_us,
                        if(gone, 0, toUInt64(hit_blocks)) AS leading,
                        if(gone, 0, toUInt64(block_size)) AS block_tokens,
                        if(gone, '', concat(tenant, '\n', source, '\n', event_id, '\n0')) AS event
                    FROM
                    (
                        SELECT
                            pool, model, adapter, cell, tenant, time_us, evicted_us, block_size, hit_blocks, source, event_id,
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
        WHERE notEmpty(own)
    )
    WHERE token_us > 0
)
GROUP BY borne_by, price_of, parts
