"""Frames out of a stream's bytes, however they were cut. Pure.

Invariants
1. Memory is taken only after the head passed the limits and the owner's check, and only for what has arrived, whatever
   the head announces; a payload is received into one buffer.
2. After an error the reader takes nothing more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trivium.cluster.errors import Refused
from trivium.cluster.transport.frames import Head, Limits
from trivium.cluster.wire import HEAD


@dataclass(slots=True)
class Frame:
    head: Head
    body: bytes
    payload: memoryview


class FrameReader:
    """Feed bytes, get whole frames. `accept` sees each head first and may raise."""

    __slots__ = ("_accept", "_head", "_into", "_limits", "_stage", "failed")

    def __init__(self, limits: Limits, accept: Callable[[Head], None]) -> None:
        self._limits = limits
        self._accept = accept
        self._stage = bytearray()
        self._head: Head | None = None
        self._into = bytearray()
        self.failed = False

    @property
    def between_frames(self) -> bool:
        return self._head is None and not self._stage

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that became whole. Refused: over the limits, or not accepted."""
        frames: list[Frame] = []
        if self.failed:
            return frames
        view = memoryview(data)
        while True:
            if self._head is None:
                view = self._take_head(view)
                if self._head is None:
                    return frames
            missing = self._head.body_bytes + self._head.payload_bytes - len(self._into)
            self._into += view[:missing]  # grows by more than it needs: few copies
            if len(view) < missing:
                return frames
            view = view[missing:]
            frames.append(self._whole(self._head))
            if not view:
                return frames

    def _take_head(self, view: memoryview) -> memoryview:
        missing = HEAD.size - len(self._stage)
        self._stage += view[:missing]
        if len(self._stage) < HEAD.size:
            return view[:0]
        head = Head.parse(self._stage)
        self._stage.clear()
        try:
            self._limits.check(head.body_bytes, head.payload_bytes)
            self._accept(head)
        except Refused:
            self.failed = True
            raise
        self._head = head
        return view[missing:]

    def _whole(self, head: Head) -> Frame:
        view = memoryview(self._into)
        frame = Frame(head, bytes(view[: head.body_bytes]), view[head.body_bytes :])
        self._head, self._into = None, bytearray()
        return frame
