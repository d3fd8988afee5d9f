"""Offers this machine's environments to trainers. Start it on as many machines as you like.

Set REMOTERL_API_KEY to a key of your choice, the same everywhere, and REMOTERL_ADDRESS to the hub's address
(host:6379); without an address, this starts a hub too.
"""

import remoterl

remoterl.init(role="simulator")  # blocks here
# Ctrl-C or a signal stops it
remoterl.shutdown()
