-- In which months, by the calendar of one time zone, has each of these tenants used something? From the hourly rollup, so an hour in
-- which a month begins counts for the month before. Parameters: tenants, zone, start, end (not included).
SELECT tenant, arraySort(groupUniqArray(formatDateTime(hour, '%Y-%m', {zone:String}))) AS months
FROM usage_hourly
WHERE has({tenants:Array(String)}, tenant)
    AND hour >= {start:DateTime64(6, 'UTC')} AND hour < {end:DateTime64(6, 'UTC')} AND events > 0
GROUP BY tenant
ORDER BY tenant
