"""Does what others ask of the stream, in a thread of the driver beside its queries.

Belongs here: taking requests up, handing each to what knows its kind, and answering. Not here: the files (`requests`), or the work itself,
which takes the refine step's tables between two batches (`RefineStep.between_batches`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from crm_assets.streaming import replay, upkeep
from crm_assets.streaming.refine import RefineStep, StepClosed
from crm_assets.streaming.requests import Answer, Request, RequestKind, answer, forget_answered, open_requests
from crm_resources.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

LOG = logging.getLogger(__name__)

POLL_SECONDS = 1.0

KEPT = timedelta(days=7)
"""Answered requests are kept this long, for people who ask what was done; a driver that starts removes older ones."""

Handler = Callable[[Settings, "SparkSession", RefineStep, Request], dict[str, Any]]
"""Carries out a request; what it returns are the answer's figures, what it raises is the answer's error."""


def handlers() -> Mapping[RequestKind, Handler]:
    """Who carries out which kind of request."""
    kept = (RequestKind.COMPACT, RequestKind.VACUUM, RequestKind.CHECKPOINT)
    return {RequestKind.REPLAY: replay.carry_out, **dict.fromkeys(kept, upkeep.carry_out)}


class Attendant:
    """Answers requests until it is stopped.

    Args:
        settings: data set of the stream.
        spark: the driver's session.
        step: the refine step that runs now, `None` while there is none; requests wait for it.
        known: see `handlers`.
    """

    def __init__(
        self,
        settings: Settings,
        spark: SparkSession,
        step: Callable[[], RefineStep | None],
        known: Mapping[RequestKind, Handler] | None = None,
    ) -> None:
        self._settings = settings
        self._spark = spark
        self._step = step
        self._known = handlers() if known is None else known
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="attendant", daemon=True)

    def start(self) -> None:
        """Begin to look for requests."""
        self._thread.start()

    def stop(self, timeout_seconds: float) -> None:
        """Take no further request up; one in hand ends at its next wish to write, and is taken up again by the next driver."""
        self._stop.set()
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        try:
            forget_answered(self._settings, datetime.now(UTC) - KEPT)
        except Exception:
            LOG.exception("old requests could not be removed")
        while not self._stop.wait(POLL_SECONDS):
            step = self._step()
            if step is None:
                continue
            try:
                for request in open_requests(self._settings):
                    if self._stop.is_set():
                        return
                    self._carry_out(step, request)
            except StepClosed:
                LOG.info("a request is interrupted; the next refine step takes it up again")
            except Exception:
                LOG.exception("requests could not be read or answered; trying again")

    def _carry_out(self, step: RefineStep, request: Request) -> None:
        started = datetime.now(UTC)
        handler = self._known.get(request.kind)
        figures: dict[str, Any] = {}
        error: str | None = None
        try:
            if handler is None:
                error = f"this driver does not know how to {request.kind}; start the stream again with the version that asks"
            else:
                LOG.info("request %s: %s %s", request.id, request.kind, request.arguments)
                figures = handler(self._settings, self._spark, step, request)
        except StepClosed:
            raise
        except Exception as failure:
            # The answer carries what went wrong to the one who asked; the stream itself goes on.
            LOG.exception("request %s failed", request.id)
            error = f"{type(failure).__name__}: {failure}"
        ended = datetime.now(UTC)
        answer(self._settings, request.id, Answer(error is None, error, figures, started.isoformat(), ended.isoformat()))
