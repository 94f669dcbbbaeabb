"""Runs work in a thread while the main thread does something else."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

Words = ParamSpec("Words")
Answer = TypeVar("Answer")


def in_background(
    work: Callable[Words, Answer], *words: Words.args, **named: Words.kwargs
) -> Future[Answer]:
    """Start the work in a thread. Its result, or its error, is available on request."""
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(work, *words, **named)
    finally:
        pool.shutdown(wait=False)
