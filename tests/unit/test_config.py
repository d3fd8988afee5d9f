from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import NOTHING_REGISTERED

import remoterl
from remoterl.config import Address, find_address, find_api_key, make_config, parse_address
from remoterl.errors import ConfigurationError, RemoteRLError

DEFAULTS: dict[str, Any] = {
    "api_key": None, "role": "trainer", "num_workers": 1, "num_env_runners": 2, "max_env_runners": 32,
    "address": None, "name": None, "labels": None, "channel": "auto", "timeout_s": 30.0, "runtime_env": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ray://hub:10001", Address("client", "hub", 10001)),
        ("ray://hub", Address("client", "hub", 10001)),
        ("ray://[::1]:20001", Address("client", "::1", 20001)),
        ("10.0.0.7:6379", Address("gcs", "10.0.0.7", 6379)),
        ("[fe80::1]:6379", Address("gcs", "fe80::1", 6379)),
        (" auto ", Address("auto")),
        ("local", Address("local")),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text, "address") == address
    assert parse_address(str(address), "address") == address


@pytest.mark.parametrize(
    "text",
    ["", "hub", "http://hub:1", "ray://", "hub:0", "hub:99999", "hub:port", "a b:1", "ray://hub:1:2", 5],
)
def test_wrong_addresses(text: Any) -> None:
    with pytest.raises(ConfigurationError, match="address must be 'ray://host:10001'"):
        parse_address(text, "address")


def test_where_an_address_comes_from() -> None:
    variables = {"REMOTERL_ADDRESS": "one:1", "RAY_ADDRESS": "two:2"}
    assert find_address("three:3", variables).port == 3
    assert find_address(None, variables).port == 1
    assert find_address(None, {"RAY_ADDRESS": "two:2"}).port == 2
    assert find_address(None, {"REMOTERL_HOME": NOTHING_REGISTERED}) is None
    with pytest.raises(ConfigurationError, match="REMOTERL_ADDRESS must be"):
        find_address(None, {"REMOTERL_ADDRESS": "nonsense"})


def test_where_a_key_comes_from(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("from-file\n")
    path = {"RAY_AUTH_TOKEN_PATH": str(token)}
    assert find_api_key("mine", {"REMOTERL_API_KEY": "theirs"}) == "mine"
    assert find_api_key(None, {"REMOTERL_API_KEY": "theirs", **path}) == "theirs"
    assert find_api_key(None, {"RAY_AUTH_TOKEN": "rays", **path}) == "rays"
    assert find_api_key(None, path) == "from-file"
    assert find_api_key(None, {**path, "RAY_AUTH_MODE": "disabled"}) is None
    assert find_api_key(None, {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}) is None


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "clé"])
def test_wrong_keys_are_not_shown(key: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        find_api_key(key, {})
    assert not key or key not in str(caught.value)


def test_a_key_is_not_in_the_repr() -> None:
    for role in ("trainer", "simulator"):
        assert "secret" not in repr(make_config(**{**DEFAULTS, "role": role, "api_key": "secret"}))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("num_env_runners", 0),
        ("num_env_runners", -1),
        ("num_env_runners", "8"),
        ("num_env_runners", 2.0),
        ("num_workers", True),
        ("num_workers", None),
        ("role", "worker"),
        ("role", None),
        ("channel", "pigeon"),
        ("timeout_s", 0),
        ("timeout_s", "soon"),
        ("timeout_s", float("inf")),
        ("address", "nonsense"),
        ("api_key", ""),
        ("api_key", 5),
        ("runtime_env", "pip"),
        ("max_restarts", -2),
        ("max_restarts", 1.5),
        ("max_restarts", None),
        ("restart_timeout_s", 0),
        ("restart_timeout_s", None),
        ("step_timeout_s", 0),
        ("step_timeout_s", "long"),
        ("reservation", 5),
    ],
)
def test_wrong_trainer_arguments_start_nothing(argument: str, value: Any) -> None:
    arguments = {**DEFAULTS, argument: value}
    with pytest.raises(ConfigurationError, match=argument) as caught:
        remoterl.init(**arguments)
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, RemoteRLError)
    assert not remoterl.is_initialized()


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("max_env_runners", 0),
        ("name", ""),
        ("name", "two words"),
        ("name", "x" * 64),
        ("labels", ["a"]),
        ("labels", {"ray.io/x": "1"}),
        ("labels", {"a": 1}),
        ("labels", {"a": "not a value"}),
        ("address", "local"),
        ("rejoin_timeout_s", -1),
        ("rejoin_timeout_s", None),
        ("rejoin_timeout_s", float("inf")),
    ],
)
def test_wrong_simulator_arguments_start_nothing(argument: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=argument.rstrip("s")):
        remoterl.init(**{**DEFAULTS, "role": "simulator", argument: value})


def test_numbers_of_numpy_are_numbers() -> None:
    assert make_config(**{**DEFAULTS, "num_env_runners": np.int64(3), "num_workers": 2}).total_env_runners == 6


def test_shutdown_before_init_is_harmless() -> None:
    remoterl.shutdown()
    remoterl.shutdown()


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("describe", ({"zone": "in(a"},)),
        ("check", (0,)),
        ("check", (1, {"zone": 3})),
        ("reserve", (2.5,)),
        ("reserve", (1, None, 0)),
        ("release", (3,)),
    ],
)
def test_wrong_arguments_of_capacity_connect_to_nothing(function: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigurationError):
        getattr(remoterl, function)(*arguments, address="192.0.2.1:6379", timeout_s=600.0)
