"""Plain Locust: `locust -f loadtests/locustfile.py --host http://127.0.0.1:8080`, with its page, tags and workers.

Tokens are signed with the key of the gateway's `--data` directory or come from a file; agencies' secrets are files, one
an agency, named by its code (`data/secrets/`, where `make run` puts them). With `--scenario NAME` the scenario decides
how many users there are. With `--out DIR` journals are written, and `vestnik-load verdict DIR` judges them.
"""

import logging
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import gevent
import orjson
from locust import events
from locust.runners import MasterRunner, WorkerRunner

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `locust -f` from anywhere, installed or not

from loadtests import shapes  # not the class: Locust would take it for the one to run
from loadtests.bench.processes import rss_bytes
from loadtests.run import ABOUT, Run
from loadtests.scenario import HABITS
from loadtests.users import AgencyUser, AnxiousPhone, FlakyPhone, Phone, SlowPhone, SteadyPhone, Vestnik

__all__ = ["AgencyUser", "AnxiousPhone", "FlakyPhone", "SlowPhone", "SteadyPhone"]

PHONES = {"steady": SteadyPhone, "flaky": FlakyPhone, "slow": SlowPhone, "anxious": AnxiousPhone}
assert PHONES.keys() == HABITS.keys()
TICK_S = 0.02
log = logging.getLogger("vestnik.load")


@events.init_command_line_parser.add_listener
def _(parser: Any) -> None:
    add = parser.add_argument_group("Vestnik").add_argument
    data = os.environ.get("VESTNIK_DATA", "data")
    add("--scenario", default="", env_var="VESTNIK_SCENARIO", help="One of `vestnik-load list`, or a .toml file")
    add("--data", default=data, help="The gateway's data directory: its token key, its agencies' secrets")
    add("--tokens", default="", help="A file of tokens, one a line, instead of the key in --data")
    add("--secrets", default="", help="A directory with one file for each agency, instead of --data/secrets")
    add("--out", default="", help="Where journals are written; nowhere by default")
    add("--agencies", type=int, default=2, help="Agencies without a scenario")
    add("--post-rate", type=float, default=20.0, help="Personal events a second without a scenario")
    add("--notice-rate", type=float, default=0.2, help="Public notices a second without a scenario")
    add("--following", type=float, default=0.3, help="Share of phones that follow an agency, without a scenario")
    add("--phones-scale", type=float, default=1.0, help="So many times the scenario's phones")
    add("--rate-scale", type=float, default=1.0, help="So many times the scenario's events")
    add("--time-scale", type=float, default=1.0, help="So many times the scenario's seconds")
    add("--seed", type=int, default=1, help="The same seed, the same choices")


@events.init.add_listener
def _(environment: Any, **_: Any) -> None:
    run = _run(environment)
    for habit, phone in PHONES.items():
        phone.weight = run.scenario.mix.get(habit, 0)
    if environment.parsed_options.scenario and not isinstance(environment.runner, WorkerRunner):
        environment.shape_class = shapes.ScenarioShape(
            run.scenario, lambda: _alone(environment) and Vestnik.shared.quiet()
        )
        environment.shape_class.runner = environment.runner
    AgencyUser.fixed_count = run.scenario.agencies
    environment.user_classes = [
        kind
        for kind in (*PHONES.values(), AgencyUser)
        if (kind.weight > 0 or kind is AgencyUser) and _chosen(kind, environment.parsed_options)
    ]
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)


def _alone(environment: Any) -> bool:
    """All users are of this process; what those of workers have, only the journals know."""
    return not isinstance(environment.runner, MasterRunner)


def _chosen(kind: type[Vestnik], options: Any) -> bool:
    """By its name and its tags on the command line. Locust itself would make users whose tasks are all left out."""
    tags = {tag for task in kind.tasks for tag in task.locust_tag_set}  # type: ignore[union-attr]
    named = not options.user_classes or kind.__name__ in options.user_classes
    return named and (not options.tags or bool(tags & set(options.tags))) and not tags & set(options.exclude_tags or ())


def _run(environment: Any) -> Run:
    runner = environment.runner
    number = runner.worker_index if isinstance(runner, WorkerRunner) else 0
    options = environment.parsed_options
    processes = options.processes or 1  # -1: as many as there are cores
    workers = max(processes if processes > 0 else os.cpu_count() or 1, options.expect_workers)
    Vestnik.shared = Run(options, max(0, number), workers)
    return Vestnik.shared


@events.test_start.add_listener
def _(environment: Any, **_: Any) -> None:
    """In every process that has users; the one that leads also says what this run is."""
    options, runner = environment.parsed_options, environment.runner
    run = _run(environment)
    Phone._pool, AgencyUser._made = None, 0
    if not isinstance(runner, WorkerRunner) and run.out is not None:
        run.out.mkdir(parents=True, exist_ok=True)
        about = {"scenario": options.scenario, "host": environment.host, "started": time.time(), "seed": options.seed}
        scale = {"phones": options.phones_scale, "rate": options.rate_scale, "time": options.time_scale}
        (run.out / ABOUT).write_bytes(orjson.dumps(about | {"scale": scale}))
    if isinstance(runner, MasterRunner):
        return
    run.begin()
    gevent.spawn(_faults, run)
    gevent.spawn(_samples, run, environment)


@events.test_stop.add_listener
def _(environment: Any, **_: Any) -> None:
    if not isinstance(environment.runner, MasterRunner):
        Vestnik.shared.end()


def _faults(run: Run) -> None:
    for fault in sorted(run.scenario.faults, key=lambda fault: fault.at):
        gevent.sleep(max(0.0, fault.at - run.now()))
        if run is not Vestnik.shared:
            return
        if fault.name == "drop":
            run.drop(fault)


def _samples(run: Run, environment: Any) -> None:
    """What this generator costs, once a second. `want` is the part of the time in which it ran or waited for a core:
    at 1 it measures itself, on a busy machine long before it has used a core. `late` are the milliseconds by which it
    came too late to things that were due each `TICK_S`: so late it also is to a message that has arrived."""
    used, waited, at = (*_scheduled(), time.time())
    while run is Vestnik.shared and environment.runner is not None and environment.runner.state != "stopped":
        late = _late(at + 1)
        now, (used_now, waited_now) = time.time(), _scheduled()
        core, want = (used_now - used) / (now - at), (used_now - used + waited_now - waited) / (now - at)
        costs = {"core": round(core, 3), "want": round(want, 3), "rss": rss_bytes(os.getpid())}
        run.generator.note({"t": "generator", **costs, "users": environment.runner.user_count, "late": late})
        used, waited, at = used_now, waited_now, now


def _late(until: float) -> list[float]:
    """How much later than asked each of the naps until then ended, milliseconds."""
    late = []
    while (begun := time.time()) < until:
        gevent.sleep(TICK_S)
        late.append(round(1000 * max(0.0, time.time() - begun - TICK_S), 1))
    return late


def _scheduled() -> tuple[float, float]:
    """Seconds that the main thread has run, and has waited for a core."""
    ran, waited, _ = Path("/proc/self/schedstat").read_text().split()
    return int(ran) / 1e9, int(waited) / 1e9
