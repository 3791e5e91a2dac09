-- Which tenants have usage in a span? Parameters: start, end (not included).
SELECT DISTINCT tenant FROM usage_log
WHERE disposition IN ('rated', 'unrated') AND time >= {start:DateTime64(6, 'UTC')} AND time < {end:DateTime64(6, 'UTC')}
ORDER BY tenant
