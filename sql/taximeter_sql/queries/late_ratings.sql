-- What became of late ratings in a span of one partition? By outcome and currency. Parameters: log_id, partition, first, last (offsets).
SELECT disposition = 'rated' AS rated, reason = 'still_unrated' AS still_unrated, currency, count() AS events, sum(toInt128(metered_pico)) AS metered
FROM usage_log
WHERE log_id = {log_id:String} AND partition = {partition:UInt32} AND offset BETWEEN {first:UInt64} AND {last:UInt64}
    AND reason IN ('rated_later', 'still_unrated')
GROUP BY rated, still_unrated, currency
