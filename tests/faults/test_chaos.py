"""One round of chaos under the fixed seed, with budgets; `make faults-long` runs many under seeds of their own."""

from tests.faults.chaos import run_round
from tests.faults.yard import Yard
from tests.kafka_broker import ApacheKafka


def test_a_round_of_chaos(yard: Yard, kafka: ApacheKafka) -> None:
    yard.budgets()
    found, told = run_round(yard, kafka, steps=6, broker_seconds_max=3)
    assert not found, "\n".join([*told, *found[:20], yard.logs()])
