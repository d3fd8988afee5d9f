"""The cluster's key in this process: Ray's token authentication, switched on and put back.

Ray reads its token once, when it is imported. To use a key that `init()` was given later, Ray's caches are
dropped; the names for that are private, so this file is the only place that touches them.
"""

from __future__ import annotations

import os
from collections.abc import Callable

MODE_VARIABLE, TOKEN_VARIABLE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"
NO_KEY = ""  # for a cluster that checks none: whoever asks for one there waits for ever, since nobody else sends it


def use_key(api_key: str | None) -> Callable[[], None]:
    """Make Ray authenticate with this key (or, `NO_KEY`, not at all) from now on; None changes nothing.

    Returns:
        A function that puts everything back as it was.
    """
    if api_key is None:
        return lambda: None
    before = {variable: os.environ.get(variable) for variable in (MODE_VARIABLE, TOKEN_VARIABLE)}
    os.environ.update(key_environment(api_key))
    _forget_cached_token()

    def undo() -> None:
        for variable, value in before.items():
            if value is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = value
        _forget_cached_token()

    return undo


def key_environment(api_key: str | None) -> dict[str, str]:
    """The environment variables that give a child process of Ray this key (never its command line)."""
    if api_key is None:
        return {}
    return {MODE_VARIABLE: "disabled"} if api_key == NO_KEY else {MODE_VARIABLE: "token", TOKEN_VARIABLE: api_key}


def make_key() -> str:
    """The token that Ray finds on this machine, made once by Ray's own rules (`~/.ray/auth_token`) if none.

    The file gets mode 0600. One that is empty (a disk was full) is none: no key would mean that Ray checks none.
    """
    from ray._private.authentication import authentication_token_setup as setup

    path = setup._get_default_token_path()
    if not path.exists() or not path.read_text().strip():
        old_umask = os.umask(0o077)
        try:
            setup.generate_and_save_token()
        finally:
            os.umask(old_umask)
        path.chmod(0o600)
    return path.read_text().strip()


def random_key() -> str:
    """A token for a private cluster, kept nowhere."""
    from ray._private.authentication.authentication_token_generator import generate_new_authentication_token

    return generate_new_authentication_token()


def _forget_cached_token() -> None:
    from ray._raylet import AuthenticationTokenLoader, Config

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
