-- Which messages were refused, why, and since when? The messages themselves are in the topic usage.rejected.v1.
SELECT tenant, reason, count() AS events, min(arrived_at) AS first_arrival, max(arrived_at) AS last_arrival
FROM usage_rejected
GROUP BY tenant, reason
ORDER BY events DESC, tenant, reason
