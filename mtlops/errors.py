"""Every error that mtlops raises on purpose, and the exit code that it becomes.

    MtlopsError                   1  (never raised itself)
    |- UsageError                 2  the command line or params.yaml is wrong
    |- DataError                  3  the data breaks a promise
    |- ArtefactError              4  a file made by mtlops is missing, corrupt or of another version
    |- PlatformError              5  storage, network, disk or orchestrator failed
    |- VerdictError               6  the gate did not say PROMOTE, and `--exit-code` was given
    |- PreemptedError           143  SIGTERM while training: saved, to be run again (128 + 15, as shells count)

A message is one line: what is wrong, where, and what to do about it.
"""


class MtlopsError(Exception):
    """An error that a user can act on; `exit_code` is what the command line returns for it."""

    exit_code = 1


class UsageError(MtlopsError):
    """The command line or params.yaml asks for something that does not exist or cannot be."""

    exit_code = 2


class DataError(MtlopsError):
    """The data breaks a promise that params.yaml makes about it."""

    exit_code = 3


class ArtefactError(MtlopsError):
    """A file that an earlier step wrote is missing, corrupt, or of another version."""

    exit_code = 4


class PlatformError(MtlopsError):
    """Something below us failed: the disk, the network, a package index, an orchestrator."""

    exit_code = 5


class VerdictError(MtlopsError):
    """The gate's verdict is not PROMOTE."""

    exit_code = 6


class PreemptedError(MtlopsError):
    """The process was asked to stop while training, and has saved where it was; to be run again."""

    exit_code = 143
