-- Was an event counted twice? A late rating stands beside the unrated row that it settles, and is the only one that may.
-- A repetition is possible within 36 days. Parameters: tenant ('' for all), since (time of arrival).
SELECT tenant, source, event_id, greatest(countIf(disposition = 'rated'), countIf(reason != 'rated_later')) AS rows
FROM usage_log
WHERE disposition IN ('rated', 'unrated') AND arrived_at >= {since:DateTime64(6, 'UTC')} - INTERVAL 36 DAY
    AND ({tenant:String} = '' OR tenant = {tenant:String})
GROUP BY tenant, source, event_id
HAVING rows > 1 AND max(arrived_at) >= {since:DateTime64(6, 'UTC')}
ORDER BY tenant, source, event_id
LIMIT 100
