"""Ray imports this in every worker process of a simulator's node, before any task: RLlib's workers among them.

So an id that the simulator registered can be made there, whoever's actor it is.
"""

from remoterl.actors import registry

registry.load()
