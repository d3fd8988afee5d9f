"""Joining and leaving Ray: finding a hub, connecting as a trainer, running a node as a simulator."""
