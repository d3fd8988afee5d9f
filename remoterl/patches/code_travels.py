"""Code that lies beside the trainer's script, sent along by Ray's own pickler."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from remoterl._logging import logger
from remoterl.beside import beside_the_script_by_value


@functools.cache
def _trial_class() -> Any:
    import ray.actor
    import ray.cloudpickle

    class Trial(ray.cloudpickle.CloudPickler):
        """Can it be pickled? The bytes are thrown away. References of Ray's are left out: each that is pickled beside a
        task is held until this process ends (`ray._private.serialization`), the weights of every iteration say."""

        def persistent_id(self, obj: Any) -> str | None:
            return "a reference" if isinstance(obj, (ray.ObjectRef, ray.actor.ActorHandle)) else None

    return Trial


@contextmanager
def code_travels(*values: Any) -> Iterator[None]:
    """What Ray pickles in here takes modules beside the script along by value, if `values` can be pickled so.

    Where they can't (a module holds a lock, say), they go by reference as they always do, and the simulators
    need the module on their path or in the `runtime_env`.
    """
    import ray.cloudpickle

    with ExitStack() as by_value:
        by_value.enter_context(beside_the_script_by_value(ray.cloudpickle))
        try:
            _trial_class()(io.BytesIO()).dump(values)
        except Exception as error:
            logger.debug("not by value: %s", error)
            by_value.close()
        yield
