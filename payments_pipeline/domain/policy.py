"""Policy: limits, minimums and expiries, as values.

Belongs here: the shape of the policy file and its meaning. Does not belong here: reading the file.
"""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class CurrencyPolicy(_Strict):
    """Limits of one currency, in its minor units.

    Attributes:
        minimum_minor: a net below this stays open.
        instruction_limit_minor: an instruction above this is held.
        party_day_limit_minor: most that one party is sent on a calendar day.
        day_limit_minor: most that is sent on a calendar day.
        expires_days: days after which an instruction that is held and that nobody approved is cancelled.
    """

    minimum_minor: int = Field(ge=0)
    instruction_limit_minor: int = Field(ge=0)
    party_day_limit_minor: int = Field(ge=0)
    day_limit_minor: int = Field(ge=0)
    expires_days: int = Field(ge=1)


class CurrencyOverride(_Strict):
    """What differs from the default for one currency."""

    minimum_minor: int | None = Field(None, ge=0)
    instruction_limit_minor: int | None = Field(None, ge=0)
    party_day_limit_minor: int | None = Field(None, ge=0)
    day_limit_minor: int | None = Field(None, ge=0)
    expires_days: int | None = Field(None, ge=1)


class DispatchPolicy(_Strict):
    """How instructions are sent; each key is described in the policy file."""

    batch_size: int = Field(ge=1, le=100_000)
    retries: int = Field(ge=0, le=20)
    breaker_failures: int = Field(ge=1)
    key_margin_s: int = Field(ge=0)
    overdue_days: int = Field(ge=1)


class SweepPolicy(_Strict):
    """When a party's items wait for a person."""

    failures_in_a_row: int = Field(ge=1)


class ChecksPolicy(_Strict):
    """From when data-quality checks fail."""

    reject_rate_bp: int = Field(ge=0, le=10_000)
    break_age_days: int = Field(ge=0)


class Policy(_Strict):
    """The whole policy file.

    Attributes:
        version: kept with each instruction that the policy approved.
        default: limits of every currency without a table of its own.
        currencies: by ISO 4217 code, what differs.
    """

    version: str = Field(min_length=1)
    default: CurrencyPolicy
    currencies: dict[str, CurrencyOverride] = {}
    dispatch: DispatchPolicy
    sweep: SweepPolicy
    checks: ChecksPolicy

    @model_validator(mode="before")
    @classmethod
    def _approval_moved(cls, content: object) -> object:
        if isinstance(content, dict) and "approval" in content:
            raise ValueError("approval.expires_days is a limit per currency now: write it as default.expires_days")
        return content

    @model_validator(mode="after")
    def _currencies_are_codes(self) -> Self:
        for code in self.currencies:
            if not (len(code) == 3 and code.isascii() and code.isupper()):
                raise ValueError(f"currencies.{code} is no ISO 4217 code")
        return self

    def of(self, currency: str) -> CurrencyPolicy:
        """Give a currency's limits, the default's where it states none."""
        override = self.currencies.get(currency)
        if override is None:
            return self.default
        return self.default.model_copy(update=override.model_dump(exclude_none=True))
