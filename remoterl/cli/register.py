"""`remoterl register`: keep the hub's address and the cluster's key for this user."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer


def register(
    address: Annotated[str | None, typer.Argument(help="The hub: ray://HOST:10001 or HOST:6379.")] = None,
    show: Annotated[bool, typer.Option("--show", help="Show what is kept, the key masked.")] = False,
    forget: Annotated[bool, typer.Option("--forget", help="Remove what is kept.")] = False,
    check: Annotated[bool, typer.Option(help="Ask the hub whether it takes the key, before it is kept.")] = True,
) -> None:
    """Keep address and key in a file that only you can read; `init()` uses them where nothing else names any.

    The key is read from REMOTERL_API_KEY, else asked for (from standard input where that is no terminal).
    """
    from remoterl import registration
    from remoterl.config import check_api_key, parse_address
    from remoterl.errors import ConfigurationError

    if forget:
        print("Removed." if registration.forget() else "Nothing was kept.")
        return
    if show:
        kept = registration.read()
        if kept is None:
            print("Nothing is kept. Register with: remoterl register ray://HOST:10001")
            raise typer.Exit(1)
        print(f"address  {kept.address}\nkey      {kept.masked_key}")
        return
    if address is None:
        raise ConfigurationError("give the hub's address: remoterl register ray://HOST:10001 (or --show, --forget).")
    parsed = parse_address(address, "ADDRESS")
    if parsed.kind not in ("client", "gcs"):
        raise ConfigurationError(f"ADDRESS must be 'ray://HOST:10001' or 'HOST:6379', got {address!r}.")
    key = os.environ.get("REMOTERL_API_KEY") or _ask_for_key()
    check_api_key(key, "the key")
    if check:
        from remoterl.cluster import probe

        if not probe.wait_for_hub(parsed, key, probe.ONE_PROBE_S):
            raise ConfigurationError(
                f"no hub answers at {parsed}, nothing was kept. Start it first, or keep it anyway with --no-check."
            )
    path = registration.write(registration.Registration(str(parsed), key))
    print(f"{parsed} and its key are kept in {path}.")


def _ask_for_key() -> str:
    if sys.stdin.isatty():
        return str(typer.prompt("The cluster's key", hide_input=True))
    return sys.stdin.readline().strip()
