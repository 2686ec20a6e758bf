"""How long steps take, saves and the wait for data included."""

import time


class StepClock:
    """Measures from one `start` to the next question; each process counts the images of all of them.

    Args:
        images: of a step over all processes.
    """

    def __init__(self, images: int) -> None:
        self._images = images
        self.start()

    def start(self) -> None:
        """Begin a step."""
        self._began = time.perf_counter()

    def speed(self) -> dict[str, float]:
        """Return the seconds of the step so far, and the images a second they mean."""
        seconds = time.perf_counter() - self._began
        return {"step_seconds": seconds, "images_per_second": self._images / seconds}
