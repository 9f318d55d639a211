"""Many threads that do the same at once."""

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

THREADS = 32


def all_at_once(work: Callable[[int], bool]) -> bool:
    """Whether `work(i)` answers True in each of 32 threads, which begin together and are switched every ten microseconds."""
    ready, interval = threading.Barrier(THREADS), sys.getswitchinterval()

    def begin(i: int) -> bool:
        ready.wait()
        return work(i)

    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            return all(pool.map(begin, range(THREADS)))
    finally:
        sys.setswitchinterval(interval)
