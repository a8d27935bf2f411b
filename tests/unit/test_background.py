"""Work that outlives its caller finds a nursery, or trio's own, at every moment."""

from __future__ import annotations

import trio
import trio.testing

from trivium.cluster.background import Background


def test_work_that_starts_while_the_nursery_closes_is_done() -> None:
    """Between the last task's end and that of run() the nursery is closed: its caller met a RuntimeError."""

    async def main() -> None:
        background, done = Background(), trio.Event()

        class Closing(trio.abc.Instrument):
            def before_task_step(self, task: trio.lowlevel.Task) -> None:
                if not self.seen and (nursery := background._nursery) is not None and nursery._closed:
                    self.seen = True
                    background.start(work)

            seen = False

        async def work() -> None:
            done.set()
            await trio.lowlevel.checkpoint()

        closing = Closing()
        trio.lowlevel.add_instrument(closing)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(background.run)
            await trio.testing.wait_all_tasks_blocked()
            background.start(trio.sleep_forever)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        trio.lowlevel.remove_instrument(closing)
        assert closing.seen
        await done.wait()

    trio.run(main)
