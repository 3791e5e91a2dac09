-- Which tenants have used blocks of one cache pool between two moments? A pool that one tenant used alone has no row. Rows inserted
-- after `until` do not count. Parameters: start, end (not included), until.
SELECT arraySort(groupUniqArray(tenant)) AS tenants
FROM usage_log
WHERE disposition = 'rated' AND pool != '' AND notEmpty(blocks)
    AND time >= {start:DateTime64(6, 'UTC')} AND time < {end:DateTime64(6, 'UTC')}
    AND inserted_at <= {until:DateTime64(3, 'UTC')}
GROUP BY pool
HAVING length(tenants) > 1
ORDER BY tenants
