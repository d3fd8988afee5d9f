"""The version, in one place; simulators and trainers must agree on it."""

__version__ = "0.1.0"
