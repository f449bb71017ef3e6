"""The Dagster instance of a command that runs days in its own process.

Belongs here: opening it on a stack. Does not belong here: its storage (dagster_storage), its configuration
(dagster.yaml).
"""

import os

import dagster as dg

from payments_pipeline.local.stack import Endpoints, dagster_home, environment
from payments_pipeline.settings import Settings


def open_instance(endpoints: Endpoints, settings: Settings) -> dg.DagsterInstance:
    """Open the instance that the UI shows too; as a context manager it closes its connections.

    From then on this process and its children find the stack in their environment, as the UI's own processes do.

    Raises:
        StackError: the project's dagster.yaml is missing.
    """
    os.environ.update(environment(endpoints, settings))
    return dg.DagsterInstance.from_config(str(dagster_home(settings)))
