from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

import remoterl
from remoterl import errors


def test_everything_public_is_there() -> None:
    assert sorted(remoterl.__all__) == remoterl.__all__
    for name in remoterl.__all__:
        assert getattr(remoterl, name) is not None
    with pytest.raises(AttributeError):
        _ = remoterl.nothing_of_the_kind


def test_importing_is_light_and_patches_nothing() -> None:
    code = (
        "import sys, remoterl; "
        "print([name for name in ('ray', 'torch', 'gymnasium', 'stable_baselines3') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_a_session_imports_no_framework_that_the_script_did_not() -> None:
    code = (
        "import sys, remoterl.session, remoterl.simulator, remoterl.patches.gymnasium, remoterl.actors.env_runner; "
        "print([name for name in ('torch', 'stable_baselines3', 'ray.rllib') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize("name", errors.__all__)
def test_errors_survive_pickling(name: str) -> None:
    error = getattr(errors, name)("what happened")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error) and str(copy) == str(error)
