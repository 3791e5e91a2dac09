-- Which events of these tenants void or amend another, each in its own span? A correction carries the time of what it corrects.
-- Rows inserted after `untils` do not count. Parameters: tenants, starts, ends, untils (arrays of one length).
SELECT tenant, source, event_id, correction.2 AS corrects, correction.1 = 'amends' AS amends
FROM usage_log
ARRAY JOIN arrayFilter(
    said -> mapContains(attributes, said.1), [('voids', attributes['voids']), ('amends', attributes['amends'])]) AS correction
WHERE disposition = 'rated' AND has({tenants:Array(String)}, tenant)
    AND time >= {starts:Array(DateTime64(6, 'UTC'))}[indexOf({tenants:Array(String)}, tenant)]
    AND time < {ends:Array(DateTime64(6, 'UTC'))}[indexOf({tenants:Array(String)}, tenant)]
    AND inserted_at <= {untils:Array(DateTime64(3, 'UTC'))}[indexOf({tenants:Array(String)}, tenant)]
ORDER BY tenant, source, event_id, correction
