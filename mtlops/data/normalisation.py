"""The one normalisation of text: preparing data, training and serving all call `normalise`."""

import hashlib
import html
import re
import unicodedata

VERSION = "1: no BOM, lone surrogates replaced, HTML unescaped, NFC, white space collapsed"
"""What `normalise` does, in words. Change it with every change of the function: the fingerprint follows."""

_BOM = "\ufeff"
_SURROGATE = re.compile("[\ud800-\udfff]")


def normalise(text: str) -> str:
    """Returns `text` as every task sees it; any string is accepted, and the result can be written as UTF-8.

    Byte order marks go, HTML entities become characters, composed forms are used (Unicode NFC), and each
    run of white space becomes one space. Applying it twice is the same as once.
    """
    if _SURROGATE.search(text):
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    while (clean := _once(text)) != text:
        text = clean
    return clean


def fingerprint() -> str:
    """Returns 16 hex digits that name this normalisation: equal in data and bundle, or they do not fit."""
    return hashlib.sha256(VERSION.encode()).hexdigest()[:16]


def _once(text: str) -> str:
    if "&" in text:
        text = html.unescape(text)
    return " ".join(unicodedata.normalize("NFC", text.replace(_BOM, "")).split())
