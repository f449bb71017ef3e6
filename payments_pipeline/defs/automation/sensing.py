"""What all sensors share: saying in one line that a tick failed, and asking for a day's run.

Belongs here: nothing that decides. Does not belong here: what one sensor reads or asks for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date

import dagster as dg

from payments_pipeline.defs.resources import MAKER_TAG

#: Tag of a run that says why it was asked for.
REASON_TAG = "payments/reason"


@contextmanager
def said_if_failed(context: dg.SensorEvaluationContext, sensor: str) -> Iterator[None]:
    """Say in one line that a tick failed and what follows; the error itself goes on and fails the tick.

    Dagster keeps the cursor of the last tick that did not fail, so the next one reads the same again.
    """
    try:
        yield
    except Exception as error:
        words = " ".join(str(error).split()) or type(error).__name__
        context.log.error(  # noqa: TRY400  # one line; the traceback is the tick's own error
            f"{sensor} could not look: {words} Nothing was asked for or marked as seen; the next tick tries again."
        )
        raise


def day_request(sensor: str, run_key: str, day: date, job_name: str) -> dg.RunRequest:
    """Ask for a day's run in a sensor's name."""
    return dg.RunRequest(
        run_key=run_key,
        partition_key=day.isoformat(),
        job_name=job_name,
        tags={MAKER_TAG: sensor, REASON_TAG: sensor},
    )
