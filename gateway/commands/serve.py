"""`vestnik serve` and `vestnik worker`: the processes that stay."""

import click

from gateway.commands.common import flags, settings_of


@click.command(short_help="Run the gateway.")
@flags("host", "port", "store", "bus", "data", "processes")
@click.pass_context
def serve(ctx: click.Context, /, **given: str | None) -> None:
    """Run the gateway, until SIGTERM or Ctrl-C; with the embedded bus the workers run inside it.

    Exits 3 when it cannot start, with one sentence why.
    """
    settings = settings_of(**given)
    from gateway.app import run

    ctx.exit(run(settings))


@click.command(short_help="Run workers as a process of their own.")
@click.argument("roles", nargs=-1, metavar="[ROLE …]")
@flags("store", "bus", "data")
@click.pass_context
def worker(ctx: click.Context, /, roles: tuple[str, ...], **given: str | None) -> None:
    """Run workers as a process of their own: the roles named, or all."""
    settings = settings_of(**given)
    from workers.loop import main

    ctx.exit(main(settings, roles))
