-- Was an event counted twice? Identities with more than one counted row.
SELECT tenant, source, event_id, count() AS rows
FROM usage_log
WHERE disposition IN ('rated', 'unrated')
GROUP BY tenant, source, event_id
HAVING rows > 1
ORDER BY tenant, source, event_id
LIMIT 100
