"""The version, in one place; simulators and trainers must agree on it, and on what `_protocol` makes of it."""

__version__ = "0.1.0"
