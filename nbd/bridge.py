"""Between nbdkit's threads and the one trio thread: calls cross in batches, everything else stays where it is.

    nbdkit thread: call(fn, *args) -> queue -> (one wake-up per batch) -> trio task -> answer -> the thread goes on

Invariants
1. The trio thread is woken once for all calls that queue up before it looks.
2. A call returns when its function has returned or raised; stop() lets none wait for ever.
3. Nothing is started before start(), and nothing runs after stop() has returned.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import trio


class Stopped(Exception):
    """The server is going down; the call was not executed."""


class _Call:
    __slots__ = ("args", "done", "error", "fn", "value")

    def __init__(self, fn: Callable[..., Awaitable[Any]], args: tuple[Any, ...], done: threading.Lock) -> None:
        self.fn = fn
        self.args = args
        self.done = done
        self.value: Any = None
        self.error: BaseException | None = None


class Bridge:
    """`main(stopping, task_status)` is the application on the trio thread: calls are taken once it has started, and it
    returns soon after `stopping` is set, having put everything in order."""

    def __init__(self, main: Callable[..., Awaitable[None]]) -> None:
        self._main = main
        self._calls: deque[_Call] = deque()
        self._woken = False
        self._locks: deque[threading.Lock] = deque()
        self._started = threading.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._nursery: trio.Nursery | None = None
        self._stopping: trio.Event | None = None
        self._error: BaseException | None = None
        self._stopped = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin the trio thread; raises what kept the application from starting."""
        self._thread = threading.Thread(target=self._run, name="trio", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error

    def stop(self) -> None:
        """Let the application come to its end and join the thread."""
        self._stopped = True
        if self._thread is None:
            return
        if self._token is not None and self._stopping is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._stopping.set)
        self._thread.join()
        self._thread = None

    def call(self, fn: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Run `await fn(*args)` on the trio thread and wait for its outcome. Not from the trio thread."""
        lock = self._locks.pop() if self._locks else threading.Lock()
        lock.acquire()
        call = _Call(fn, args, lock)
        self._calls.append(call)
        if self._stopped:
            raise Stopped("the server is going down")
        if not self._woken:
            self._woken = True
            self.soon(self._take)
        lock.acquire()
        lock.release()
        self._locks.append(lock)
        if call.error is not None:
            raise call.error
        return call.value

    def soon(self, fn: Callable[[], object]) -> None:
        """Run a function on the trio thread soon; from any thread, waits for nothing."""
        assert self._token is not None
        try:
            self._token.run_sync_soon(fn)
        except trio.RunFinishedError:
            raise Stopped("the server is going down") from None

    # ---- trio thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as error:
            if not self._started.is_set():
                self._error = error
        finally:
            self._stopped = True
            self._started.set()
            self._refuse_rest()

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._stopping = trio.Event()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self._until_it_ends, self._stopping)
            self._started.set()

    async def _until_it_ends(self, stopping: trio.Event, *, task_status: trio.TaskStatus[None]) -> None:
        assert self._nursery is not None
        await self._main(stopping, task_status=task_status)
        self._nursery.cancel_scope.cancel()  # calls that are still under way are refused

    def _take(self) -> None:
        self._woken = False
        calls = self._calls
        while calls:
            call = calls.popleft()
            if self._nursery is None or self._stopped:
                self._refuse(call)
            else:
                self._nursery.start_soon(self._execute, call)

    async def _execute(self, call: _Call) -> None:
        try:
            call.value = await call.fn(*call.args)
        except trio.Cancelled:
            call.error = Stopped("the server is going down")
            raise
        except Exception as error:
            call.error = error
        finally:
            call.done.release()

    def _refuse(self, call: _Call) -> None:
        call.error = Stopped("the server is going down")
        call.done.release()

    def _refuse_rest(self) -> None:
        while self._calls:
            self._refuse(self._calls.popleft())
