"""Offers this machine's environments to trainers. Start it on as many machines as you like.

Set REMOTERL_ADDRESS to the hub's address (host:6379); without it, this starts a hub too.
"""

import remoterl

remoterl.init(api_key="YOUR_KEY", role="simulator")  # blocks here
# Ctrl-C or a signal stops it
remoterl.shutdown()
