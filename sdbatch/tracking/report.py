"""What a projection did, in words for the user."""

from __future__ import annotations

from dataclasses import dataclass

from sdbatch.tracking.target import Target


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of one projection."""

    out: str
    """The sweep folder."""
    uri: str
    """Where to, without secrets."""
    experiment: str
    images: int
    """Rows of the sweep."""
    sent: int
    """Rows that are there now."""
    runs: int = 0
    """Runs of the sweep there: one, and one per group."""
    run_id: str = ""
    error: str | None = None
    """Why not everything was sent."""
    notices: tuple[str, ...] = ()

    @property
    def unsent(self) -> int:
        """Rows that are not there yet."""
        return max(0, self.images - self.sent)

    @property
    def ok(self) -> bool:
        """Whether everything there is was sent."""
        return self.error is None

    def __str__(self) -> str:
        notices = "".join(f"\n  note: {notice}" for notice in self.notices)
        if self.error is not None:
            left = f"{self.unsent} images not yet sent to MLflow" if self.unsent else "MLflow does not have everything yet"
            return f"{left}: {self.error}\n  Nothing is lost; run `sdbatch track {self.out}` to send the rest.{notices}"
        runs = "1 run" if self.runs == 1 else f"{self.runs} runs"
        images = "1 image" if self.images == 1 else f"{self.images} images"
        return f"{images} in {runs} of experiment {self.experiment!r}: {Target(self.uri).viewer}{notices}"
