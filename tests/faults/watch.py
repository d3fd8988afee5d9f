"""Says whenever the cluster's simulators or their free units change: a line of JSON. `python watch.py ADDRESS`"""

from __future__ import annotations

import json
import sys
import time

import ray


def main(address: str) -> None:
    ray.init(address, log_to_driver=False)
    said = None
    while True:
        simulators = sorted(
            node["NodeName"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("env_runner")
        )
        seen = (simulators, ray.available_resources().get("env_runner", 0))
        if seen != said:
            said = seen
            print(
                json.dumps({"event": "seen", "at": time.monotonic(), "simulators": seen[0], "free": seen[1]}),
                flush=True,
            )
        time.sleep(0.2)


if __name__ == "__main__":
    main(*sys.argv[1:])
