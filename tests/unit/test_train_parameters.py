from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional, Union

import pytest

from remoterl.cli.train.parameters import Parameter, closest, parameters_of, read_parameters
from remoterl.cli.train.runs import output_folder
from remoterl.errors import ConfigurationError


class Algorithm:
    """Annotated as frameworks annotate: quoted and not, old unions and new ones, with what no text can give."""

    def __init__(
        self,
        policy: str | type[int],
        env: Any,
        learning_rate: float | Callable[[float], float] = 3e-4,
        n_steps: int = 2048,
        lambda_: Optional[float] = None,  # noqa: UP045
        ent_coef: Union[str, float] = "auto",  # noqa: UP007
        train_freq: int | tuple[int, str] = 4,
        use_sde: bool = False,
        policy_kwargs: dict[str, Any] | None = None,
        hiddens: Optional[int] = [256],  # noqa: UP045
        action_noise: Callable[[], float] | None = None,
        unannotated=0.5,  # type: ignore[no-untyped-def]
        anything=None,  # type: ignore[no-untyped-def]
        _private: bool = True,
        **others: Any,
    ) -> None: ...


PARAMETERS = parameters_of(Algorithm.__init__, leave_out=("env",))


def read(*arguments: str) -> dict[str, Any]:
    return read_parameters(arguments, PARAMETERS, "ALGORITHM", ["num-envs", "steps"])


def test_what_a_signature_offers() -> None:
    assert set(PARAMETERS) == {
        "policy", "learning_rate", "n_steps", "lambda_", "ent_coef", "train_freq", "use_sde", "policy_kwargs",
        "hiddens", "action_noise", "unannotated", "anything",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--policy", "MlpPolicy"], {"policy": "MlpPolicy"}),
        (["--learning-rate", "3e-4", "--n-steps=64"], {"learning_rate": 3e-4, "n_steps": 64}),
        (["--learning_rate", "1"], {"learning_rate": 1.0}),
        (["--n-steps", "1e6"], {"n_steps": 1_000_000}),
        (["--n-steps", "-1"], {"n_steps": -1}),
        (["--lambda", "0.9"], {"lambda_": 0.9}),
        (["--lambda", "none"], {"lambda_": None}),
        (["--ent-coef", "0.1"], {"ent_coef": 0.1}),
        (["--ent-coef", "auto_0.1"], {"ent_coef": "auto_0.1"}),
        (["--train-freq", '[1, "episode"]'], {"train_freq": (1, "episode")}),
        (["--train-freq", "8"], {"train_freq": 8}),
        (["--use-sde", "--n-steps", "8"], {"use_sde": True, "n_steps": 8}),
        (["--use-sde", "False"], {"use_sde": False}),
        (["--policy-kwargs", '{"net_arch": [64, 64]}'], {"policy_kwargs": {"net_arch": [64, 64]}}),
        (["--hiddens", "[16]"], {"hiddens": [16]}),
        (["--unannotated", "2.5"], {"unannotated": 2.5}),
        (["--anything", "true"], {"anything": True}),
        (["--anything", "1"], {"anything": 1}),
        (["--anything", "text"], {"anything": "text"}),
        ([], {}),
    ],
)
def test_values(arguments: list[str], expected: dict[str, Any]) -> None:
    values = read(*arguments)
    assert values == expected
    assert [type(value) for value in values.values()] == [type(value) for value in expected.values()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning-rat", "1"], r"ALGORITHM has no parameter --learning-rat\. The closest names: --learning-rate\."),
        (["--lr", "1"], r"no parameter --lr\. The closest names: --learning-rate\."),
        (["--num-env", "1"], r"no parameter --num-env\. The closest names: --num-envs\."),
        (["--qqq", "1"], r"no parameter --qqq\.$"),
        (["--env", "1"], "no parameter --env"),
        (["--n-steps", "many"], r"--n-steps takes an integer, got 'many'\."),
        (["--n-steps", "1.5"], "takes an integer, got '1.5'"),
        (["--n-steps"], "takes an integer, got nothing"),
        (["--lambda", "x"], "--lambda takes a number or none, got 'x'"),
        (["--use-sde", "1"], "takes true or false, got '1'"),
        (["--train-freq", "[1"], "takes an integer or a JSON list"),
        (["--policy-kwargs", "[1]"], r"takes a JSON object or none, got '\[1\]'"),
        (["--action-noise", "x"], "--action-noise takes a Python object"),
        (["--n-steps", "1", "--n_steps", "2"], "--n_steps is given twice"),
        (["64"], "expected a parameter as --name value, got '64'"),
        (["--n-steps", "1", "2"], "got '2'"),
        (["-n", "1"], "got '-n'"),
    ],
)
def test_refusals(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read(*arguments)


def test_a_default_widens_what_its_annotation_promises() -> None:
    assert Parameter.of("grad_clip", Optional[int], 40.0).read("0.5") == 0.5  # noqa: UP045
    with pytest.raises(ConfigurationError, match="an integer or none"):
        Parameter.of("grad_clip", Optional[int], 40).read("0.5")  # noqa: UP045


def test_closest_names() -> None:
    assert closest("PPQ", ["PPO", "A2C"]) == " The closest names: PPO."
    assert closest("learning-rate", ["lr", "gamma"], "--") == " The closest names: --lr."
    assert closest("ppo", ["PPO"]) == " The closest names: PPO."
    assert closest("zzz", ["PPO"]) == ""


def test_folders(tmp_path: Path) -> None:
    assert output_folder(tmp_path / "a" / "b", "PPO", "CartPole-v1") == tmp_path / "a" / "b"
    names = [output_folder(None, "PPO", "ALE/Pong-v5", tmp_path / "runs").name for _ in range(2)]
    assert names == ["PPO_ALE-Pong-v5_1", "PPO_ALE-Pong-v5_2"]
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="nothing can be written"):
        output_folder(tmp_path / "file" / "folder", "PPO", "CartPole-v1")


def test_the_command_line_imports_no_framework() -> None:
    code = (
        "import sys, remoterl.cli; "
        "print([name for name in ('ray', 'torch', 'stable_baselines3', 'matplotlib') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
