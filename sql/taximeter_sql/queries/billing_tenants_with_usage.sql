-- Who used something in a span of time? From the hourly rollup. Parameters: start, end (not included).
SELECT tenant
FROM usage_hourly
WHERE hour >= {start:DateTime64(6, 'UTC')} AND hour < {end:DateTime64(6, 'UTC')} AND events > 0
GROUP BY tenant
ORDER BY tenant
