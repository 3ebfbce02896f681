"""The `vestnik` command. Contract, section 6.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 a setting is wrong or the gateway cannot start, 130 Ctrl-C.
What goes wrong is one sentence on standard error, never a traceback (VESTNIK_LOG_LEVEL=debug shows it).
"""

import errno
import os
from typing import Any

import click

from gateway import settings
from gateway.commands import access, agency, migrate, publish, serve, upkeep
from gateway.commands.common import say
from gateway.errors import ConfigError, StoreUnavailable, VestnikError


class Root(click.Group):
    """Turns errors into a sentence and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except ConfigError as error:
            say(error)
            ctx.exit(3)
        except StoreUnavailable as error:
            say(f"The store cannot do this now, try again: {error}")
            ctx.exit(1)
        except VestnikError as error:
            say(error)
            ctx.exit(1)
        except KeyboardInterrupt:
            say("Stopped.")
            ctx.exit(130)
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # the reader of our output went away; click ends quietly
            if os.environ.get("VESTNIK_LOG_LEVEL", "").lower() == "debug":
                raise
            say(f"It failed unexpectedly ({type(error).__name__}: {error}); VESTNIK_LOG_LEVEL=debug shows where.")
            ctx.exit(1)


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="vestnik", message="%(prog)s %(version)s")
def cli() -> None:
    """Vestnik, a real-time push gateway: signed events from agencies to every device of a person.

    Settings are VESTNIK_* in the environment or in a .env file (gateway/SETTINGS.md); flags outrank them.
    """
    for sentence in settings.unknown():
        say(sentence)


for command in (
    serve.serve,
    serve.worker,
    agency.agency,
    access.token,
    publish.publish,
    access.revoke,
    upkeep.erase,
    upkeep.verify,
    upkeep.backup,
    upkeep.restore,
    migrate.migrate,
):
    cli.add_command(command)


def main() -> None:
    """The console script."""
    cli(prog_name="vestnik")


if __name__ == "__main__":
    main()
