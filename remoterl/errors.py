"""The errors a user of remoterl can meet, and nothing else.

RemoteRLError (a RuntimeError)
├── ConfigurationError        (also a ValueError)           a wrong argument; nothing was started
├── AlreadyInitializedError                                 a second init() that differs from the first
├── AuthenticationError                                     the cluster refused the key, or wants one
├── VersionMismatchError                                    Ray, Python or remoterl differ from the cluster's
├── UnknownEnvironmentError   (also gymnasium.error.UnregisteredEnv)   no simulator knows the id
├── SpaceMismatchError        (also an AssertionError)      sub-environments whose spaces do not fit together
├── UnsupportedError          (also a NotImplementedError)  something remoterl cannot do remotely
├── NotShippableError                                       a factory cannot travel to a simulator
├── RemoteEnvError                                          an environment raised what cannot be pickled
├── EnvRunnerLostError                                      an env runner died, and nothing could take its place
├── StepTimeoutError          (also a TimeoutError)         an environment outlasted step_timeout_s
├── HubLostError              (also a ConnectionError)      the cluster's hub is gone; the session is closed
└── CapacityError                                           the cluster has not got what an algorithm asks for

Every message says what was expected, what arrived, and what to change. All of them survive pickling.
"""

from __future__ import annotations

import gymnasium.error

__all__ = [
    "AlreadyInitializedError",
    "AuthenticationError",
    "CapacityError",
    "ConfigurationError",
    "EnvRunnerLostError",
    "HubLostError",
    "NotShippableError",
    "RemoteEnvError",
    "RemoteRLError",
    "RemoteTraceback",
    "SpaceMismatchError",
    "StepTimeoutError",
    "UnknownEnvironmentError",
    "UnsupportedError",
    "VersionMismatchError",
]


class RemoteRLError(RuntimeError):
    """Base of every error that remoterl raises by itself."""


class ConfigurationError(RemoteRLError, ValueError):
    """An argument or an environment variable is wrong. Raised before anything is started."""


class AlreadyInitializedError(RemoteRLError):
    """`init()` was called again with another role or other arguments."""


class AuthenticationError(RemoteRLError):
    """The cluster refused the key, or needs one and got none. Never names a key."""


class VersionMismatchError(RemoteRLError):
    """This process and the cluster run different versions of Ray, Python or remoterl."""


class UnknownEnvironmentError(RemoteRLError, gymnasium.error.UnregisteredEnv):
    """Neither the simulators nor the trainer have registered the environment id.

    What is raised is Gymnasium's own class too: NamespaceNotFound, NameNotFound or VersionNotFound.
    """


class UnknownNamespaceError(UnknownEnvironmentError, gymnasium.error.NamespaceNotFound):
    """Nobody has registered an id of this namespace."""


class UnknownNameError(UnknownEnvironmentError, gymnasium.error.NameNotFound):
    """Nobody has registered an id of this name, whatever the version."""


class UnknownVersionError(UnknownEnvironmentError, gymnasium.error.VersionNotFound):
    """The name is registered, this version of it is not."""


class SpaceMismatchError(RemoteRLError, AssertionError):
    """Spaces of sub-environments do not fit together. SyncVectorEnv raises one base, AsyncVectorEnv the other."""


class UnsupportedError(RemoteRLError, NotImplementedError):
    """What was asked cannot be done for a remote environment."""


class NotShippableError(RemoteRLError):
    """An environment factory arrived on a simulator that cannot load it (a missing module, mostly)."""


class RemoteEnvError(RemoteRLError):
    """A remote environment raised an exception that cannot be pickled; its traceback is the cause."""


class EnvRunnerLostError(RemoteRLError):
    """An env runner (or the simulator it ran on) died with rows of this vector env on it, and they could not go on."""


class StepTimeoutError(RemoteRLError, TimeoutError):
    """An environment outlasted `init(step_timeout_s=...)`. The stuck env runner is ended; `reset()` goes on."""


class HubLostError(RemoteRLError, ConnectionError):
    """The cluster's hub is gone, and with it the session: environments are closed until the next `init()`."""


class CapacityError(RemoteRLError):
    """The cluster has fewer env runners (or CPUs, GPUs) to give than an algorithm or a trial asks for."""


class RemoteTraceback(Exception):
    """The traceback of an error on a simulator, as text; set as `__cause__` of the error raised here."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}" if self.args else ""
