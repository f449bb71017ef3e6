"""Adapters by name.

Belongs here: which names there are. Does not belong here: settings, opening connections.
"""

from __future__ import annotations

from collections.abc import Callable

from payments_pipeline.domain.errors import ConfigurationError
from payments_pipeline.processors.base import PayoutProcessor
from payments_pipeline.processors.sandbox.adapter import NAME as SANDBOX
from payments_pipeline.processors.sandbox.adapter import SandboxProcessor

_ADAPTERS: dict[str, Callable[[str, str], PayoutProcessor]] = {SANDBOX: SandboxProcessor}


def open_processor(name: str, url: str, api_key: str) -> PayoutProcessor:
    """Give a processor's adapter, unopened.

    Raises:
        ConfigurationError: there is no adapter of that name (names those there are), or it cannot use the address or
            the key.
    """
    adapter = _ADAPTERS.get(name)
    if adapter is None:
        raise ConfigurationError(
            f"PAYMENTS_PROCESSOR: there is no {name!r}; there are: {', '.join(sorted(_ADAPTERS))}. Nothing was sent."
        )
    return adapter(url, api_key)
