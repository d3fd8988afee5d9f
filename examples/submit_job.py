"""Run a trainer inside the cluster, as a Ray job: what `ray job submit` does, with the hub's dashboard address.

`python submit_job.py http://HUB:8265 rllib_ppo.py` sends the folder of the script along, starts it at the hub, and
shows what it prints until it ends. The shell's way to the same:
`ray job submit --address http://HUB:8265 --working-dir . -- python rllib_ppo.py`
"""

import asyncio
import os
import sys
from pathlib import Path

from ray.job_submission import JobStatus, JobSubmissionClient


async def show(client: JobSubmissionClient, job: str) -> None:
    async for text in client.tail_job_logs(job):
        print(text, end="")


if __name__ == "__main__":
    address, script = sys.argv[1], Path(sys.argv[2]).resolve()
    key = os.environ["REMOTERL_API_KEY"]
    client = JobSubmissionClient(address, headers={"Authorization": f"Bearer {key}"})
    # In the job, Ray says by itself where the cluster is and what its key is.
    job = client.submit_job(entrypoint=f"python {script.name}", runtime_env={"working_dir": str(script.parent)})
    asyncio.run(show(client, job))
    status = client.get_job_status(job)
    print(status)
    sys.exit(status is not JobStatus.SUCCEEDED)
