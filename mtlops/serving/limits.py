"""How much one request, and all waiting requests together, may ask for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Checked before anything of that size is made.

    Attributes:
        body_bytes: of a request, on any protocol.
        rows: texts of a request.
        pairs: texts times tasks of a request.
        characters: of a text; what lies beyond the encoder's tokens is never read.
        queue_rows: texts that wait for the model; more are refused with 429.
        timeout_seconds: a request that was not begun by then is refused with 504; a client may ask for less.
        read_seconds: from a request's first byte, or its connection, until all of it must have arrived over HTTP.
    """

    body_bytes: int = 8 << 20
    rows: int = 256
    pairs: int = 8192
    characters: int = 100_000
    queue_rows: int = 1024
    timeout_seconds: float = 30.0
    read_seconds: float = 30.0
