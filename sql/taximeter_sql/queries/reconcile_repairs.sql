-- How often was each cell of a rollup repaired? Parameters: tenants (Array(String)).
SELECT rollup, bucket, tenant, uniqExact(token) AS repairs
FROM rollup_repairs
WHERE has({tenants:Array(String)}, tenant)
GROUP BY tenant, bucket, rollup
