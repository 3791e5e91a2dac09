"""The meter: usage events from Kafka into ClickHouse, exactly once, rated; spend to the budgets."""
