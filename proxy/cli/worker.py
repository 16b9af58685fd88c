"""`pullthrough worker`: one worker process; the supervisor runs it, nobody else."""

import asyncio

import click

from proxy import processes


@click.command(hidden=True)
@click.argument("descriptor", type=int)
def worker(descriptor: int) -> None:
    """Serve as the supervisor at the other end of DESCRIPTOR says."""
    asyncio.run(processes.work(descriptor))
