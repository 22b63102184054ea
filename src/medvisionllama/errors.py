"""The one kind of error a user can mend."""

from __future__ import annotations

from typing import Any


class InputError(ValueError):
    """Bad input from outside: what was wrong, what was got and expected, and how to mend it.

    The command line prints the message alone, without a traceback, and exits with 2.

    Args:
        fault: What is wrong and where (name the file), without a full stop.
        got: What was found, if that adds anything.
        expected: What should have been found, if that adds anything.
        mend: One imperative sentence: what the user can do.
    """

    def __init__(self, fault: str, *, got: str = "", expected: str = "", mend: str = "") -> None:
        self.fault = fault
        self.mend = mend
        details = [f"got {got}"] if got else []
        details += [f"expected {expected}"] if expected else []
        self.fault_in_full = f"{fault}: {', '.join(details)}" if details else fault
        super().__init__(f"{self.fault_in_full}.{' ' + mend if mend else ''}")

    def __reduce__(self) -> tuple[object, ...]:
        """Between processes it stays as it is; made anew from its message it would end in two full stops."""
        return _as_it_was, (str(self), self.__dict__)


def _as_it_was(message: str, facts: dict[str, Any]) -> InputError:
    error = InputError.__new__(InputError, message)
    error.__dict__.update(facts)
    return error
