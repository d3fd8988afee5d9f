"""What env runners do in less time than Gymnasium: the same answers, and the same errors."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Discrete

from remoterl.actors.shortcuts import contains

SPACES = [
    Discrete(2),
    Discrete(3, start=-1),
    Discrete(5, start=2**62),
    Discrete(7, dtype=np.int32),
    Discrete(300, dtype=np.uint16),
    pickle.loads(pickle.dumps(Discrete(4))),
]
VALUES: list[Any] = [
    *range(-3, 9), 299, 2**62, 2**62 + 4, 2**62 + 5, 2**63 - 1, 2**63, 2**70, -(2**70),
    True, False, 1.0, "1", None, [1], (1,),
    *(kind(value) for kind in (np.int64, np.int32, np.int8, np.uint8, np.float64) for value in (0, 1, 5)),
    np.int64(-1), np.int64(2**62), np.uint64(2**63), np.bool_(True),
    np.array(1), np.array([1]), np.array(1.0),
]  # fmt: skip


def told(function: Any, space: Discrete, value: Any) -> Any:
    try:
        answer = function(space, value)
    except Exception as error:
        return type(error), str(error)
    return type(answer), answer


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_contains(space: Discrete) -> None:
    assert Discrete.contains is not contains  # nothing but an env runner takes it
    answers = [told(Discrete.contains, space, value) for value in VALUES]
    assert [told(contains, space, value) for value in VALUES] == answers
    assert (bool, True) in answers and (bool, False) in answers
