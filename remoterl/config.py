"""What `init()` was asked for: validated arguments, and where they come from when they are left out.

Pure but for reading the process environment; nothing here starts or connects to anything.
"""

from __future__ import annotations

import os
import re
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from remoterl import registration
from remoterl.errors import ConfigurationError
from remoterl.labels import check_selector

Role = Literal["trainer", "simulator"]
ChannelName = Literal["auto", "stream", "actor"]

DEFAULT_CLIENT_PORT = 10001
DEFAULT_GCS_PORT = 6379
DEFAULT_DASHBOARD_PORT = 8265
HOST_VARIABLE, PORTS_VARIABLE = "REMOTERL_HOST", "REMOTERL_PORTS"
MIN_PORTS = 32  # six services and a few worker processes, for a hub and a simulator on one machine


@dataclass(frozen=True)
class Address:
    """Where the hub is: `client` (Ray Client), `gcs` (in-cluster), `auto` (found on this machine), `local`."""

    kind: Literal["client", "gcs", "auto", "local"]
    host: str = ""
    port: int = 0

    @property
    def target(self) -> str:
        """`host:port`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        if self.kind == "client":
            return f"ray://{self.target}"
        return self.target if self.kind == "gcs" else self.kind


@dataclass(frozen=True)
class TrainerConfig:
    """A trainer's validated arguments. The key stays out of the repr."""

    num_workers: int
    num_env_runners: int
    address: Address | None
    channel: ChannelName
    timeout_s: float
    address_was_argument: bool
    runtime_env: Mapping[str, Any] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)  # a selector
    reservation: str | None = None  # its id
    max_restarts: int = 1000  # -1: any number
    restart_timeout_s: float = 60.0
    step_timeout_s: float | None = 600.0
    api_key: str | None = field(default=None, repr=False)

    @property
    def total_env_runners(self) -> int:
        """How many env runners the trainer asks for over all its workers."""
        return self.num_workers * self.num_env_runners


@dataclass(frozen=True)
class SimulatorConfig:
    """A simulator's validated arguments. The key stays out of the repr."""

    max_env_runners: int
    address: Address | None
    name: str
    labels: Mapping[str, str]
    timeout_s: float
    rejoin_timeout_s: float = 600.0  # 0: it does not try
    host: str | None = None  # this machine's address as the others reach it
    ports: tuple[int, int] | None = None  # the range that a firewall leaves open
    api_key: str | None = field(default=None, repr=False)


def make_config(
    *,
    api_key: str | None,
    role: str,
    num_workers: int,
    num_env_runners: int,
    max_env_runners: int,
    address: str | None,
    name: str | None,
    labels: Mapping[str, str] | None,
    channel: str,
    timeout_s: float,
    runtime_env: Mapping[str, Any] | None,
    reservation: Any = None,
    max_restarts: int = 1000,
    restart_timeout_s: float = 60.0,
    step_timeout_s: float | None = 600.0,
    rejoin_timeout_s: float = 600.0,
) -> TrainerConfig | SimulatorConfig:
    """Validate the arguments of `init()`.

    Raises:
        ConfigurationError: an argument or an environment variable is wrong; the message says which.
    """
    if role not in get_args(Role):
        raise ConfigurationError(f"role must be 'trainer' or 'simulator', got {role!r}.")
    timeout_s = positive_number("timeout_s", timeout_s)
    resolved = find_address(address)
    key = find_api_key(api_key, address=resolved)
    if role == "simulator":
        if reservation is not None:
            raise ConfigurationError("A simulator takes no reservation: it is a trainer's.")
        if resolved is not None and resolved.kind == "local":
            raise ConfigurationError(
                "A simulator cannot use address='local': that is a trainer's private cluster. "
                "Leave the address out to start a hub here, or give the hub's address."
            )
        return SimulatorConfig(
            max_env_runners=positive_int("max_env_runners", max_env_runners),
            address=resolved,
            name=_simulator_name(name),
            labels=_labels(labels),
            timeout_s=timeout_s,
            rejoin_timeout_s=0.0 if rejoin_timeout_s == 0 else positive_number("rejoin_timeout_s", rejoin_timeout_s),
            host=os.environ.get(HOST_VARIABLE) or None,
            ports=parse_ports(os.environ[PORTS_VARIABLE], PORTS_VARIABLE) if os.environ.get(PORTS_VARIABLE) else None,
            api_key=key,
        )
    if channel not in get_args(ChannelName):
        raise ConfigurationError(f"channel must be one of {get_args(ChannelName)}, got {channel!r}.")
    if runtime_env is not None and not isinstance(runtime_env, Mapping):
        raise ConfigurationError(f"runtime_env must be a dict for Ray or None, got {type(runtime_env).__name__}.")
    return TrainerConfig(
        num_workers=positive_int("num_workers", num_workers),
        num_env_runners=positive_int("num_env_runners", num_env_runners),
        address=resolved,
        channel=channel,  # type: ignore[arg-type]
        timeout_s=timeout_s,
        address_was_argument=address is not None,
        runtime_env=runtime_env,
        labels=check_selector(labels),
        reservation=_reservation_id(reservation),
        max_restarts=-1 if max_restarts == -1 else positive_int("max_restarts", max_restarts, least=0),
        restart_timeout_s=positive_number("restart_timeout_s", restart_timeout_s),
        step_timeout_s=None if step_timeout_s is None else positive_number("step_timeout_s", step_timeout_s),
        api_key=key,
    )


def find_address(argument: str | None, environ: Mapping[str, str] = os.environ) -> Address | None:
    """The argument, else REMOTERL_ADDRESS, RAY_ADDRESS, what `remoterl register` keeps, else None (nothing named)."""
    if argument is not None:
        return parse_address(argument, "address")
    for variable in ("REMOTERL_ADDRESS", "RAY_ADDRESS"):
        if environ.get(variable):
            return parse_address(environ[variable], variable)
    registered = registration.read(environ)
    return None if registered is None else parse_address(registered.address, "the registered address")


def parse_address(text: str, source: str) -> Address:
    """Read `ray://host[:port]`, `host:port`, `auto` or `local`.

    Raises:
        ConfigurationError: the text is none of these; `source` is named as where it came from.
    """
    expected = "'ray://host:10001', 'host:6379', 'auto' or 'local'"
    if not isinstance(text, str) or not text.strip():
        raise ConfigurationError(f"{source} must be {expected}, got {text!r}.")
    text = text.strip()
    if text in ("auto", "local"):
        return Address(text)  # type: ignore[arg-type]
    scheme, separator, rest = text.rpartition("://")
    if separator and scheme != "ray":
        raise ConfigurationError(f"{source} must be {expected}, got {text!r} (unknown scheme {scheme!r}).")
    match = re.fullmatch(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<host>[^\s:/\[\]]+))(?::(?P<port>\d+))?/?", rest)
    default_port = DEFAULT_CLIENT_PORT if separator else None
    port = int(match["port"]) if match and match["port"] else default_port
    if match is None or port is None or not 0 < port < 65536:
        raise ConfigurationError(f"{source} must be {expected}, got {text!r}.")
    return Address("client" if separator else "gcs", match["v6"] or match["host"], port)


def find_api_key(
    argument: str | None, environ: Mapping[str, str] = os.environ, address: Address | None = None
) -> str | None:
    """The argument, else REMOTERL_API_KEY, else the registered key, else the token that Ray itself finds, else None.

    The registered key is for the registered hub: it goes to no other `address`. Ray's own variables come before it, as
    they do for the address. Source of Ray's order: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, `~/.ray/auth_token`.
    """
    if argument is not None:
        return check_api_key(argument, "api_key")
    if "REMOTERL_API_KEY" in environ:
        return check_api_key(environ["REMOTERL_API_KEY"], "REMOTERL_API_KEY")
    if environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return None
    if environ.get("RAY_AUTH_TOKEN"):
        return check_api_key(environ["RAY_AUTH_TOKEN"].strip(), "RAY_AUTH_TOKEN")
    if address is not None and "RAY_AUTH_TOKEN_PATH" not in environ:
        kept = registration.read(environ)
        if kept and kept.api_key and parse_address(kept.address, "the registered address").host == address.host:
            return check_api_key(kept.api_key, "the registered key")
    path = Path(environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        token = path.read_text().strip()
    except OSError:
        return None
    return check_api_key(token, f"the token file {path}") if token else None


def parse_ports(text: str, source: str) -> tuple[int, int]:
    """Read a range of ports, `20000-20999`: the first and the last.

    Raises:
        ConfigurationError: it is none, or has fewer than `MIN_PORTS` ports.
    """
    match = re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", text)
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 0 < first <= last < 65536:
        raise ConfigurationError(f"{source} must be a range of ports such as 20000-20999, got {text!r}.")
    if last - first + 1 < MIN_PORTS:
        raise ConfigurationError(
            f"{source} must have at least {MIN_PORTS} ports (six for Ray's services and one for each process), "
            f"got {text!r} with {last - first + 1}."
        )
    return first, last


def check_api_key(key: str, source: str) -> str:
    """The key, if it can travel in a header; the error never shows it."""
    if not isinstance(key, str):
        raise ConfigurationError(f"{source} must be a string, got {type(key).__name__}.")
    if not key:
        raise ConfigurationError(
            f"{source} is empty. Give the cluster's token, or leave it out to use the one Ray finds."
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigurationError(
            f"{source} must be printable ASCII without spaces (it travels in a header); "
            "the value given (not shown) is not."
        )
    return key


def positive_int(name: str, value: Any, least: int = 1) -> int:
    """The value as an int of `least` or more, else a ConfigurationError that names it."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < least:
        raise ConfigurationError(f"{name} must be an integer of {least} or more, got {value!r}.")
    return int(value.__index__())


def positive_number(name: str, value: Any) -> float:
    """The value as seconds above 0, else a ConfigurationError that names it."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ConfigurationError(f"{name} must be a number of seconds above 0, got {value!r}.")
    return float(value)


def _reservation_id(reservation: Any) -> str | None:
    if reservation is None:
        return None
    text = getattr(reservation, "id", reservation)
    if not isinstance(text, str) or not text:
        raise ConfigurationError(
            f"reservation must be what remoterl.reserve() returned, or its id, got {reservation!r}."
        )
    return text


def _simulator_name(name: str | None) -> str:
    if name is None:
        host = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname()).strip("-_.") or "simulator"
        return f"{host[:40]}-{uuid.uuid4().hex[:6]}"
    if not isinstance(name, str) or not _LABEL_VALUE.fullmatch(name):
        raise ConfigurationError(
            "name must be 1 to 63 letters, digits, '-', '_' or '.', starting and ending with a letter or "
            f"digit (it becomes a Ray node label), got {name!r}."
        )
    return name


_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_LABEL_KEY = re.compile(r"([A-Za-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


def _labels(labels: Mapping[str, str] | None) -> dict[str, str]:
    if labels is None:
        return {}
    if not isinstance(labels, Mapping):
        raise ConfigurationError(f"labels must be a dict of strings, got {type(labels).__name__}.")
    for key, value in labels.items():
        if not isinstance(key, str) or not _LABEL_KEY.fullmatch(key) or key.startswith(("ray.io/", "remoterl")):
            raise ConfigurationError(
                f"label names follow Kubernetes' rules and may not start with 'ray.io/' or 'remoterl', got {key!r}."
            )
        if not isinstance(value, str) or (value and not _LABEL_VALUE.fullmatch(value)):
            raise ConfigurationError(
                f"the value of label {key!r} must be at most 63 letters, digits, '-', '_' or '.', got {value!r}."
            )
    return dict(labels)
