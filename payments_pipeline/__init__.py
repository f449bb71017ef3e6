"""Football match results into participant shares, payout instructions and settlement records."""

from functools import cache


@cache
def code_version() -> str:
    """Give this program's version, as it is kept with everything it writes."""
    from importlib.metadata import version  # only needed where something is written

    return version("payments-pipeline")
