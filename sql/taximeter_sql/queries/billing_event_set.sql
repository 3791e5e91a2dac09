-- How many rated events do these tenants have, each in its own span, and what is the order-independent hash of them?
-- Parameters: tenants, starts, ends (arrays of one length).
SELECT
    count() AS events,
    lower(hex(groupBitXor(reinterpretAsUInt128(sipHash128(identity, body, list_pico, metered_pico, rate_card)))))
FROM usage_events
WHERE has({tenants:Array(String)}, tenant)
    AND time >= {starts:Array(DateTime64(6, 'UTC'))}[indexOf({tenants:Array(String)}, tenant)]
    AND time < {ends:Array(DateTime64(6, 'UTC'))}[indexOf({tenants:Array(String)}, tenant)]
