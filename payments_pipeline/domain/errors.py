"""Every error the program raises on purpose, in one tree.

    PaymentsError
    ├── ConfigurationError            settings or policy cannot be used; nothing ran
    ├── DatabaseUnavailableError      the business database does not answer; what was committed stands
    ├── InputError                    what came in stops the day before anything is posted
    │   └── BadFileError              a landing or reference file cannot be read at all
    ├── AllocationOverflowError       an amount is beyond what the arithmetic admits; names the pot
    ├── InvariantError                the program's own result is wrong; nothing was committed
    ├── StaleInputError               shares were computed from input that has since changed
    ├── ConflictError                 same key, other content
    ├── LedgerFaultError              what is stored breaks a rule; dispatch stops
    ├── ProcessorError                what a payment processor answered
    │   ├── PayoutRejectedError       final: it was not and will not be carried out
    │   ├── ProcessorUnavailableError nothing was accepted; may be tried again
    │   └── PayoutOutcomeUnknownError no answer: it may have been carried out
    └── StackError                    the embedded servers cannot start or stop

Each message says which record, whether money moved, and what to do.
"""


class PaymentsError(Exception):
    """Root of all errors raised on purpose; its text is fit to be shown to an operator as it is."""


class ConfigurationError(PaymentsError):
    """A setting or the policy file cannot be used; nothing ran."""


class DatabaseUnavailableError(PaymentsError):
    """The business database does not answer or refuses the login; what had been committed stands."""


class InputError(PaymentsError):
    """What came in stops the day before anything is posted."""


class BadFileError(InputError):
    """A landing or reference file cannot be read at all; names the file, the fault and the cure."""


class AllocationOverflowError(PaymentsError):
    """An amount or weight is beyond what the division admits; names the pot."""


class InvariantError(PaymentsError):
    """The program's own result breaks a rule; nothing was committed. A defect: report it."""


class StaleInputError(PaymentsError):
    """The shares were computed from input that has since changed; nothing was posted. Run the day again."""


class ConflictError(PaymentsError):
    """A stored row has the same key and other content; names the key."""


class LedgerFaultError(PaymentsError):
    """What is stored breaks a rule of the ledger; nothing was sent."""


class ProcessorError(PaymentsError):
    """What a payment processor answered, or that it did not."""


class PayoutRejectedError(ProcessorError):
    """The processor refused the instruction for good: it was not and will not be carried out."""

    def __init__(self, message: str, *, code: str) -> None:
        """Keep the processor's own reason code beside the message."""
        super().__init__(message)
        self.code = code


class ProcessorUnavailableError(ProcessorError):
    """The processor accepted nothing; the same bytes may be sent again.

    Attributes:
        retry_after_s: seconds that the processor asked to be left alone; 0 where it did not say.
    """

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        """Keep what the processor asked for beside the message."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class PayoutOutcomeUnknownError(ProcessorError):
    """No answer: the instruction may have been carried out. It is looked up, never re-sent blind."""


class StackError(PaymentsError):
    """The embedded servers cannot be started, found or stopped; says what to do."""
