-- When a batch was inserted, by the meter's clock: whether its token is still remembered decides if repeating it is safe.
ALTER TABLE usage_log ADD COLUMN IF NOT EXISTS inserted_at DateTime64(3, 'UTC');

ALTER TABLE usage_log ADD INDEX IF NOT EXISTS inserted_at_range inserted_at TYPE minmax;

-- The replicated engines forget tokens by their own settings, after an hour by default.
ALTER TABLE usage_log MODIFY SETTING replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800;

ALTER TABLE usage_hourly MODIFY SETTING replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800;

ALTER TABLE usage_daily MODIFY SETTING replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800;

ALTER TABLE usage_counts_hourly MODIFY SETTING replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800;
