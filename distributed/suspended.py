"""A call that can pause in the middle, as a generator can, but from any depth of other people's code."""

from __future__ import annotations

from collections.abc import Callable
from threading import Semaphore, Thread
from typing import Generic, TypeVar

__all__ = ["Suspended"]

T = TypeVar("T")


class _Closed(BaseException):
    """Unwinds a paused call that nobody will resume; not an Exception, so that no layer catches it."""


class Suspended(Generic[T]):
    """``function(pause)``, run up to its next ``pause()`` by every ``resume``.

    The call has a thread of its own, which runs only while ``resume`` waits for it: there is one line of control.
    What torch keeps per thread (the grad mode) starts from its default.

    Args:
        function: gets what pauses it.
    """

    def __init__(self, function: Callable[[Callable[[], None]], T]) -> None:
        self._function = function
        self._go, self._back = Semaphore(0), Semaphore(0)
        self._result: T | None = None
        self._error: BaseException | None = None
        self._closed = False
        self._thread = Thread(target=self._run, daemon=True)
        self.done = False

    def resume(self) -> T | None:
        """Go on to the next pause, or to the end; what the function raises is raised here.

        Returns:
            The result of the function once it is ``done``, None before.
        """
        if self.done:
            return self._result
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.release()
        self._back.acquire()
        if self._error is not None:
            raise self._error
        return self._result

    def close(self) -> None:
        """Give a paused call up."""
        if self._thread.is_alive():
            self._closed = True
            self._go.release()
            self._thread.join()

    def _run(self) -> None:
        try:
            self._result = self._function(self._pause)
        except _Closed:
            pass
        except BaseException as error:
            self._error = error
        self.done = True
        self._back.release()

    def _pause(self) -> None:
        self._back.release()
        self._go.acquire()
        if self._closed:
            raise _Closed
