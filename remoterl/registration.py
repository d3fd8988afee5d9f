"""What `remoterl register` keeps for this user: the hub's address and the cluster's key, in a file of mode 0600."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from remoterl.errors import ConfigurationError

HOME_VARIABLE = "REMOTERL_HOME"


@dataclass(frozen=True)
class Registration:
    """Both as text, as they were given. The key stays out of the repr."""

    address: str
    api_key: str | None = field(default=None, repr=False)

    @property
    def masked_key(self) -> str:
        """Enough to tell two keys apart, and no more."""
        if self.api_key is None:
            return "none"
        return "****" + (self.api_key[-4:] if len(self.api_key) >= 24 else "")


def folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where remoterl keeps what it remembers for this user: REMOTERL_HOME, else `~/.remoterl`."""
    return Path(environ.get(HOME_VARIABLE) or Path.home() / ".remoterl")


def read(environ: Mapping[str, str] = os.environ) -> Registration | None:
    """What this user registered, if anything.

    Raises:
        ConfigurationError: the file is there and can't be read as what `write` wrote.
    """
    path = _path(environ)
    try:
        return Registration(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"{path} can't be read ({type(error).__name__}). Write it anew with `remoterl register`, or remove it."
        ) from None


def write(registration: Registration, environ: Mapping[str, str] = os.environ) -> Path:
    """Keep it instead of what was registered before."""
    path = _path(environ)
    write_private(path, json.dumps(asdict(registration)))
    return path


def forget(environ: Mapping[str, str] = os.environ) -> bool:
    """Remove it; False where nothing was registered."""
    try:
        _path(environ).unlink()
    except FileNotFoundError:
        return False
    return True


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read, whole or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w") as file:
        file.write(text)
    draft.replace(path)


def _path(environ: Mapping[str, str]) -> Path:
    return folder(environ) / "registration.json"
