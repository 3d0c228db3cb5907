"""Adapters: small trainable parts inside a frozen trunk. One module a kind, all of one anatomy (`anatomy.py`)."""
