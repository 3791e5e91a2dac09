"""How fast the machine is at the moment: the CPU time of work that is always the same. Neighbours on its host change that."""

import random
import statistics
import time

_MADE = random.Random(1)
_NUMBERS = [_MADE.random() for _ in range(200_000)]
_TIMES = 5


def fixed_work_ms() -> float:
    """Milliseconds of CPU that sorting the same 200,000 numbers takes this process now; the median of five times."""
    spent = []
    for _time in range(_TIMES):
        began = time.process_time()
        sorted(_NUMBERS)
        spent.append((time.process_time() - began) * 1000)
    return statistics.median(spent)
