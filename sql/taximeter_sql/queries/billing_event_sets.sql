-- Which rated events does each of these tenants have in its own span, by invoice line, and what is the order-independent hash of
-- them? Rows inserted after `untils` do not count. Parameters: tenants, starts, ends, untils (arrays of one length).
SELECT
    tenant,
    feature,
    model,
    rate_card,
    count() AS events,
    lower(hex(groupBitXor(reinterpretAsUInt128(sipHash128(identity, body, list_pico, metered_pico, rate_card))))) AS digest,
    max(inserted_at) AS newest
FROM usage_log
WHERE disposition = 'rated' AND has({tenants:Array(String)}, tenant)
    AND time >= {starts:Array(DateTime64(6, 'UTC'))}[indexOf({tenants:Array(String)}, tenant)]
    AND time < {ends:Array(DateTime64(6, 'UTC'))}[indexOf({tenants:Array(String)}, tenant)]
    AND inserted_at <= {untils:Array(DateTime64(3, 'UTC'))}[indexOf({tenants:Array(String)}, tenant)]
GROUP BY tenant, feature, model, rate_card
ORDER BY tenant, feature, model, rate_card
