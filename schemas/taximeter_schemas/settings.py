"""Settings that every service reads from the environment (TAXIMETER_...): the addresses of the log and the warehouse."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class LogSettings(BaseSettings):
    """Where the log is, and how many partitions its topics have. Built in a `__main__` and passed in."""

    model_config = SettingsConfigDict(env_prefix="TAXIMETER_", frozen=True, extra="ignore")

    kafka_bootstrap_servers: str = Field("127.0.0.1:9092", description="Kafka brokers, comma-separated host:port")
    log_id: str = Field(
        "kafka", description="Names the log; change it when offsets begin anew (a new or emptied Kafka)"
    )
    kafka_partitions: int = Field(4, ge=1, le=10_000, description="Partitions of each topic that Taximeter creates")
    kafka_replication: int = Field(1, ge=1, le=9, description="Replicas of each topic that Taximeter creates")
    kafka_rebalance_timeout_seconds: int = Field(
        30, ge=1, le=600, description="How long a consumer group waits for its members"
    )


class WarehouseSettings(BaseSettings):
    """Where ClickHouse is."""

    model_config = SettingsConfigDict(env_prefix="TAXIMETER_", frozen=True, extra="ignore")

    clickhouse_url: str = Field(
        "http://default:@127.0.0.1:8123/taximeter",
        description="ClickHouse over HTTP: http://user:password@host:port/database",
    )


class TraceSettings(BaseSettings):
    """Whether a service sends traces of its own, by OpenTelemetry."""

    model_config = SettingsConfigDict(env_prefix="TAXIMETER_", frozen=True, extra="ignore")

    traces_endpoint: str = Field(
        "", description="OTLP/HTTP address that traces go to, such as http://127.0.0.1:4318/v1/traces; empty for none"
    )
    traces_ratio: float = Field(
        1.0, ge=0, le=1, description="Share of requests that is traced, where their caller has not decided"
    )
