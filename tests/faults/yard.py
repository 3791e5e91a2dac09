"""A fault run's yard: broker, warehouse behind its proxy, workers, producers, and the verdict at the end."""

import json
import random
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL

from clickhouse_connect.driver.client import Client
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient

from taximeter.reconcile.log_ends import log_ends
from taximeter_producers.control import publish
from taximeter_schemas.budgets import Budget
from taximeter_schemas.control import ControlKind, ControlRecord
from taximeter_schemas.periods import PeriodKind
from taximeter_schemas.topics import USAGE_EVENTS
from tests.face_process import FaceProcess
from tests.faults.clickhouse_proxy import ClickHouseProxy
from tests.faults.comparison import budget_states, budgets_owed, compare_laws, compare_rows, compare_spend
from tests.faults.ledger import Owed, Usage, declared, owe
from tests.faults.load import Acknowledged, Events, Load
from tests.faults.processes import SESSION_TIMEOUT_MS, Worker, make_worker
from tests.metered_traffic import utc_now
from tests.waiting import await_true

PARTITIONS = 4


@dataclass
class Yard:
    """One scenario. Tenants, database, log and group have names of their own, so that runs do not meet."""

    servers: str
    face: FaceProcess
    proxy: ClickHouseProxy
    database: str
    client: Client
    folder: Path
    events: Events
    mark: str
    acknowledged: Acknowledged = field(default_factory=Acknowledged)
    meters: list[Worker] = field(default_factory=list)
    keepers: list[Worker] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    factors: dict[tuple[str, str, str], int] = field(default_factory=dict)
    """Identities that were rated under a card with every price multiplied."""

    @property
    def log_id(self) -> str:
        return f"log-{self.mark}"

    @property
    def random(self) -> random.Random:
        return self.events.random

    def meter(self, *, start: bool = True, **settings: object) -> Worker:
        """A new meter worker, started unless told not to. `settings` are TAXIMETER_METER_... by their names in small letters."""
        environment = {
            "TAXIMETER_KAFKA_BOOTSTRAP_SERVERS": self.servers,
            "TAXIMETER_KAFKA_PARTITIONS": str(PARTITIONS),
            "TAXIMETER_LOG_ID": self.log_id,
            "TAXIMETER_CLICKHOUSE_URL": self.proxy.url(self.database),
            "TAXIMETER_METER_GROUP": f"meter-{self.mark}",
            "TAXIMETER_METER_SESSION_TIMEOUT_MS": str(SESSION_TIMEOUT_MS),
            "TAXIMETER_METER_BATCH_EVENTS_MAX": "80",
            "TAXIMETER_METER_LINGER_MS": "20",
            **self.environment,
            **{f"TAXIMETER_METER_{name.upper()}": str(value) for name, value in settings.items()},
        }
        worker = make_worker(
            "meter", "taximeter_streams.meter", "TAXIMETER_METER_PORT", self.folder, environment, len(self.meters)
        )
        self.meters.append(worker)
        if start:
            worker.start()
        return worker

    def budgets(self) -> Worker:
        """A budgets worker, started; every tenant gets a large budget for the month and one for a feature and the day."""
        records = []
        for tenant in self.events.tenants:
            for budget in (
                Budget(id="all", tenant=tenant, period=PeriodKind.MONTH, limit_pico=10**18, hard=False),
                Budget(id="chat", tenant=tenant, feature="chat", period=PeriodKind.DAY, limit_pico=10**18, hard=False),
            ):
                body = budget.model_dump(mode="json")
                records.append(
                    ControlRecord(
                        kind=ControlKind.BUDGET, id=f"{tenant}/{budget.id}", body=body, recorded_at=self.events.now
                    )
                )
        publish(self.servers, records)
        environment = {
            "TAXIMETER_KAFKA_BOOTSTRAP_SERVERS": self.servers,
            "TAXIMETER_KAFKA_PARTITIONS": str(PARTITIONS),
            "TAXIMETER_LOG_ID": self.log_id,
            "TAXIMETER_BUDGETS_GROUP": f"budgets-{self.mark}",
            "TAXIMETER_KAFKA_REBALANCE_TIMEOUT_SECONDS": "3",
        }
        worker = make_worker(
            "budgets",
            "taximeter_streams.budgets",
            "TAXIMETER_BUDGETS_PORT",
            self.folder,
            environment,
            len(self.keepers),
        )
        self.keepers.append(worker)
        worker.start()
        return worker

    def load(self, name: str = "svc", **options: object) -> Load:
        """A producer of its own spool; what it acknowledges is noted in `acknowledged`."""
        return Load(self.servers, self.folder / "spools", self.acknowledged, name, **options)

    def rows(self) -> int:
        """How many rows of this run's tenants are stored; 0 before there is a table."""
        if not self._migrated():
            return 0
        rows = self.client.query(
            "SELECT count() FROM usage_log WHERE tenant IN {tenants:Array(String)}",
            parameters={"tenants": list(self.events.tenants)},
        ).result_rows
        return int(rows[0][0])

    def stored_ids(self) -> set[str]:
        """The ids of this run's events that are stored."""
        rows = self.client.query(
            "SELECT event_id FROM usage_log WHERE tenant IN {tenants:Array(String)}",
            parameters={"tenants": list(self.events.tenants)},
        ).result_rows
        return {str(event_id) for (event_id,) in rows}

    def await_rows(self, count: int) -> None:
        """Wait until so many rows are stored."""
        await_true(lambda: self.rows() >= count, lambda: f"{count} rows, there are {self.rows()}\n{self.logs()}")

    def settle(self) -> None:
        """Wait until the warehouse holds all that stands in the log."""
        ends = log_ends(self.servers)

        def settled() -> bool:
            return all(self.reached().get(partition, 0) >= end for partition, end in ends.items())

        await_true(settled, lambda: f"{ends} is reached, it is {self.reached()}\n{self.logs()}", 180)

    def reached(self) -> dict[int, int]:
        """The offset behind the last row of each partition."""
        if not self._migrated():
            return {}
        rows = self.client.query(
            "SELECT partition, max(offset) + 1 FROM usage_log WHERE log_id = {log_id:String} GROUP BY partition",
            parameters={"log_id": self.log_id},
        ).result_rows
        return {int(partition): int(end) for partition, end in rows}

    def _migrated(self) -> bool:
        return bool(self.client.query("EXISTS usage_counts_hourly").result_rows[0][0])

    def forget_commits(self) -> None:
        """Take back every offset that the meters' group has committed. No member may be there."""
        places = [TopicPartition(USAGE_EVENTS.name, partition, 0) for partition in range(PARTITIONS)]
        admin = AdminClient({"bootstrap.servers": self.servers})
        group = ConsumerGroupTopicPartitions(f"meter-{self.mark}", places)
        for future in admin.alter_consumer_group_offsets([group]).values():
            future.result(60)

    def logs(self) -> str:
        """What each worker says of itself, and the end of its log."""
        return "\n".join(
            f"{worker.child.log_path.stem}: {worker.ask('/healthz')} {worker.ask('/readyz')}\n{worker.child.log_tail(15)}"
            for worker in (*self.meters, *self.keepers)
        )

    def counted(self) -> list[Usage]:
        """Each acknowledged identity once. Scenarios with conflicts say themselves what counts."""
        return list({usage.identity: usage for usage in self.acknowledged.usages}.values())

    def verdict(self, counted: list[Usage] | None = None) -> list[str]:
        """Let everything settle, end the workers in order, and say what differs; nothing when all is exact."""
        self.settle()
        for worker in self.meters:
            worker.child.stop()
            assert worker.child.exit_status in (0, -SIGKILL), worker.child.log_tail(40)
        owed = owe(self.counted() if counted is None else counted, self.factors)
        found = compare_rows(self.client, self.log_id, self.events.tenants, owed)
        found += compare_laws(self.client, self.log_id)
        found += compare_spend(self.servers, self.log_id, self.events.tenants, owed)
        if self.keepers:
            found += self._budget_verdict(owed)
        return found

    def check(self, counted: list[Usage] | None = None) -> None:
        """Fail unless the verdict is empty and nothing was refused after it had been taken."""
        assert self.acknowledged.failed == []
        found = self.verdict(counted)
        assert not found, f"{len(found)} differences:\n" + "\n".join(found[:20]) + "\n" + self.logs()

    def _budget_verdict(self, owed: Owed) -> list[str]:
        found: list[str] = []

        def agree() -> bool:
            states = budget_states(self.servers, self.events.tenants)
            found[:] = [f"no state of {name}" for name in self.events.tenants if name not in states]
            for state in states.values():
                found.extend(budgets_owed(state, owed))
            return not found

        await_true(agree, lambda: json.dumps(found[:5]) + self.logs())
        return found


@contextmanager
def opened(servers: str, face: FaceProcess, folder: Path, seed: int) -> Iterator[Yard]:
    """A yard on a running broker and warehouse. At its end the log of usage events is emptied, where the broker can."""
    mark = secrets.token_hex(4)
    tenants = (f"acme-{mark}", f"globex-{mark}", f"wonka-{mark}")
    events = Events(tenants, utc_now(), random.Random(seed))
    publish(servers, declared(tenants, events.now))
    database = f"faults_{mark}"
    with face.client() as admin:
        admin.command(f"CREATE DATABASE {database}")
    proxy = ClickHouseProxy(face.port)
    proxy.start()
    with face.client(database) as client:
        yard = Yard(servers, face, proxy, database, client, folder, events, mark)
        try:
            yield yard
        finally:
            proxy.come_back()
            for worker in (*yard.meters, *yard.keepers):
                worker.child.stop()
            proxy.stop()


def empty_log(servers: str) -> None:
    """Delete all usage events, so that the next scenario's meter need not read them. Offsets go on."""
    ends = log_ends(servers)
    places = [TopicPartition(USAGE_EVENTS.name, partition, end) for partition, end in ends.items()]
    admin = AdminClient({"bootstrap.servers": servers})
    for future in admin.delete_records(places).values():
        future.result(30)
