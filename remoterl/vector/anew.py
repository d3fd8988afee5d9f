"""What a remote vector env's class does where a script calls it: `evaluation = type(vec)(fns)`."""

from __future__ import annotations

from typing import Any


def make_anew(instance: Any, local_class: type, args: Any, kwargs: Any) -> None:
    """As the local class makes one: on simulators while there is a session, else here.

    `LOCAL_CLASS` of the instance's class is the class that it stands for, `local_class` or a script's subclass of it.

    Raises:
        TypeError: a script has derived its class from the remote one.
    """
    own_class = type(instance)
    stands_for = vars(own_class).get("LOCAL_CLASS")
    if stands_for is None:
        raise TypeError(
            f"{own_class.__name__} is derived from the class of a remote vector env, which is another one without a "
            f"session. Derive it from {local_class.__name__}."
        )
    instance.__class__ = stands_for
    local_class.__init__(instance, *args, **kwargs)  # type: ignore[misc]
