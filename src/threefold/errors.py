"""Every deliberate error of threefold, one tree. A message names the value and the way out.

ThreefoldError
├── InputError            the caller can fix it: a bad argument, text, file or option (HTTP 400)
│   ├── ConfigError       an unknown or wrong setting; names its path
│   ├── ShapeError        arrays that do not belong together
│   ├── DataError         a line of a training file is wrong; names file and line
│   ├── DocumentError     one document cannot be read; the rest of the job goes on
│   └── UnknownChunkError a chunk that is not, or no longer, in the collection
├── CheckpointError       a model on disk is not what its name promises
│   └── MissingHeadError  a representation was asked for that the checkpoint cannot make
├── StoreError            a collection cannot do what was asked
│   ├── StoreLockedError  another process has it open
│   ├── StoreCorruptError its files are damaged
│   └── ModelMismatchError it was built with another model
├── EvaluationError       qrels, runs or data sets that do not fit together
├── NumericalError        NaN or infinity where a number must be
├── DeviceMemoryError     one text alone does not fit into the memory that is left on a GPU
├── ServeError            the server cannot answer now; the request itself was fine
│   ├── OverloadedError   too much is waiting; says when to come back (HTTP 429)
│   ├── DeadlineError     the answer would come too late
│   ├── InputFailedError  the model failed on one input
│   └── UnavailableError  the model is loading or restarting, or the server is shutting down
├── WorkerError           a process of a pool ended, or failed in a way that cannot be sent
├── MissingExtraError     an optional dependency is not installed; names the install command
└── OfflineError          something would have to be downloaded and must not be
"""

from __future__ import annotations

from typing import Any


class ThreefoldError(Exception):
    """Base of every error that threefold raises on purpose."""

    #: Exit status of the command line for this kind of error (sysexits.h where one fits).
    exit_code = 1


class InputError(ThreefoldError):
    """The caller can fix it: a bad argument, text, file or option."""

    exit_code = 2


class ConfigError(InputError):
    """An unknown or wrong setting; the message names its path."""


class ShapeError(InputError):
    """Arrays that do not belong together."""


class DataError(InputError):
    """A line of a training file is wrong; the message names file and line."""


class DocumentError(InputError):
    """One document cannot be read. A job over many documents reports it and goes on."""


class UnknownChunkError(InputError):
    """A chunk that is not in the collection: it never was, or was deleted meanwhile. `id` is what it was asked by."""

    def __init__(self, message: str, id: str = "") -> None:
        super().__init__(message)
        self.id = id


class CheckpointError(ThreefoldError):
    """A model on disk is not what its name promises."""

    exit_code = 3


class MissingHeadError(CheckpointError):
    """A representation was asked for that the checkpoint cannot make."""


class StoreError(ThreefoldError):
    """A collection cannot do what was asked."""

    exit_code = 4


class StoreLockedError(StoreError):
    """Another process has the collection open."""


class StoreCorruptError(StoreError):
    """Files of the collection are damaged."""


class ModelMismatchError(StoreError):
    """The collection was built with another model."""


class EvaluationError(ThreefoldError):
    """Qrels, runs or data sets that do not fit together."""

    exit_code = 5


class NumericalError(ThreefoldError):
    """NaN or infinity where a number must be."""

    exit_code = 6


class DeviceMemoryError(ThreefoldError):
    """One text alone does not fit into the memory that is left on a GPU; that several do not fit is no error."""

    exit_code = 10


class ServeError(ThreefoldError):
    """The server cannot answer now; the request itself was fine.

    retry_after_s  seconds after which it makes sense to ask again; None: it does not
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class OverloadedError(ServeError):
    """Too much is waiting already."""


class DeadlineError(ServeError):
    """The answer would come too late."""


class InputFailedError(ServeError):
    """The model failed on one input; others of other requests are not touched."""


class UnavailableError(ServeError):
    """The model is loading or restarting, or the server is shutting down."""


class WorkerError(ThreefoldError):
    """A process of a pool ended, or failed in a way that cannot be sent to the process that asked."""

    exit_code = 9


class MissingExtraError(ThreefoldError):
    """An optional dependency is not installed; the message names the install command."""

    exit_code = 7

    def __init__(self, module: str, extra: str, purpose: str) -> None:
        super().__init__(
            f'{purpose} needs the package "{module}", which is not installed. '
            f'Install it with: pip install "threefold[{extra}]"'
        )
        self._given = (module, extra, purpose)

    def __reduce__(self) -> tuple[Any, ...]:
        """Made again from what it was made of: by default from the message, and a pool of processes would hang."""
        return type(self), self._given, self.__dict__


class OfflineError(ThreefoldError):
    """Something would have to be downloaded and must not be."""

    exit_code = 8
