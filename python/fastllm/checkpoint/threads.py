"""Work on many items by several threads, of which the caller is one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def for_each(items: Iterable[T], worker: Callable[[], Callable[[T], None]], num_threads: int) -> None:
    """Each thread makes itself a worker() and calls it with items until there are none, or until one thread has failed;
    the first exception is raised here, after all have ended."""
    iterator = iter(items)
    lock = threading.Lock()
    errors: list[BaseException] = []

    def take() -> T | None:
        with lock:
            return None if errors else next(iterator, None)

    def run() -> None:
        try:
            work = worker()
            while (item := take()) is not None:
                work(item)
        except BaseException as error:  # KeyboardInterrupt included: the helpers must end before it goes on
            with lock:
                errors.append(error)

    helpers: list[threading.Thread] = []
    for _ in range(num_threads - 1):
        helper = threading.Thread(target=run, name="fastllm-load")
        try:
            helper.start()
        except RuntimeError:  # no memory or no more threads allowed: those that run do the work
            break
        helpers.append(helper)
    run()
    for helper in helpers:
        helper.join()
    if errors:
        raise errors[0]
