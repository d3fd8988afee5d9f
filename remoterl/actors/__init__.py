"""The actors of remoterl, and what runs inside them: plain classes, wrapped by `ray.remote` where created."""
