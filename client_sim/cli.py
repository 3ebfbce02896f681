"""The `vestnik-sim` command: phones, fleets, agencies, trials and their verdict.

Exit codes: 0 all is well, 1 an invariant or a bound is broken, 2 wrong usage, 3 it cannot start, 130 interrupted (the
journals and the report are written all the same). What people read goes to standard error, what programs read
(`--json`) to standard output. Bad input is one sentence, never a traceback (VESTNIK_LOG_LEVEL=debug shows it).
"""

import logging
import os
from typing import Any

import click

from client_sim.behaviours import WrongMix
from client_sim.commands import agencies, phone, trials
from client_sim.commands.common import BROKEN, CANNOT_START, INTERRUPTED, WRONG_USE, say
from client_sim.faults import NotHere
from client_sim.identity import NoTokens
from client_sim.local import Cannot
from client_sim.offices import WrongFile
from client_sim.scenario import WrongScenario


class Root(click.Group):
    """Turns errors into a sentence and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (WrongMix, WrongScenario, WrongFile) as error:
            say(error)
            ctx.exit(WRONG_USE)
        except (Cannot, NoTokens, NotHere) as error:
            say(error)
            ctx.exit(CANNOT_START)
        except KeyboardInterrupt:
            say("Stopped.")
            ctx.exit(INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if os.environ.get("VESTNIK_LOG_LEVEL", "").lower() == "debug":
                raise
            say(f"It failed unexpectedly ({type(error).__name__}: {error}); VESTNIK_LOG_LEVEL=debug shows where.")
            ctx.exit(BROKEN)


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="vestnik", message="%(prog)s %(version)s")
def cli() -> None:
    """The simulator of Vestnik: phones as they really are, thousands of them, and a verdict that can be trusted."""


for command in (
    phone.phone,
    trials.run,
    trials.scenarios,
    trials.chaos_,
    trials.reconcile_,
    agencies.agencies_,
):
    cli.add_command(command)


def main() -> None:
    """The console script."""
    if os.environ.get("VESTNIK_LOG_LEVEL", "").lower() == "debug":
        logging.basicConfig()
        logging.getLogger("client_sim").setLevel(logging.DEBUG)
    cli(prog_name="vestnik-sim")


if __name__ == "__main__":
    main()
