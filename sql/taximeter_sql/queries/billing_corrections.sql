-- Which events of these tenants void or amend another, each in its own span? A correction carries the time of what it corrects.
-- Rows inserted after `untils` do not count. Parameters: tenants, starts, ends, untils (arrays of one length).
SELECT tenant, source, event_id, if(mapContains(attributes, 'voids'), attributes['voids'], attributes['amends']) AS corrects
FROM usage_log
WHERE disposition = 'rated' AND has({tenants:Array(String)}, tenant)
    AND time >= {starts:Array(DateTime64(6, 'UTC'))}[indexOf({tenants:Array(String)}, tenant)]
    AND time < {ends:Array(DateTime64(6, 'UTC'))}[indexOf({tenants:Array(String)}, tenant)]
    AND inserted_at <= {untils:Array(DateTime64(3, 'UTC'))}[indexOf({tenants:Array(String)}, tenant)]
    AND (mapContains(attributes, 'voids') OR mapContains(attributes, 'amends'))
ORDER BY tenant, source, event_id
