"""Whether what a box sends keeps coming: a byte now and then, for ever, would hold whoever waits for the rest."""

from __future__ import annotations

from runner import errors

LEAST_BYTES = 8 << 10
SECONDS = 120.0


class Trickle(errors.Unreachable):
    """The box sends next to nothing."""


class Flow:
    """Each LEAST_BYTES may take SECONDS of waiting for the box, over as many connections as they come. What we do
    meanwhile with what came takes as long as it takes."""

    __slots__ = ("_came", "_waited")

    def __init__(self) -> None:
        self._came, self._waited = 0, 0.0

    def tell(self, seconds: float, size: int) -> None:
        """So long was waited for so many bytes. Trickle: it is too long by now."""
        self._came += size
        self._waited += seconds
        if self._came >= LEAST_BYTES:
            self._came, self._waited = 0, 0.0
        elif self._waited > SECONDS:
            raise Trickle(
                f"the box sends next to nothing: {self._came} bytes in {self._waited:.0f} s",
                "try again from a better network; if it stays so, see `runner doctor`",
            )
