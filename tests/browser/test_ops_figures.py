"""What the figures of all nodes add up to on the operators' page, on Node."""

import json
import shutil
import subprocess
from pathlib import Path

from gateway.metrics import LATENCY_S, SHORT_S
from tests.browser.conftest import ROOT


def node(*arguments: str) -> str:
    program = shutil.which("node")
    assert program, "Node is needed: `make packages` installs it"
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_sums_and_percentiles() -> None:
    node("--test", str(Path(__file__).with_name("figures.test.mjs")))


def test_the_page_knows_the_bounds_of_the_gateways_histograms() -> None:
    module = ROOT / "gateway" / "web" / "static" / "ops-figures.js"
    said = node(
        "--input-type=module", "-e", f"import {{ BOUNDS }} from '{module}'; console.log(JSON.stringify(BOUNDS))"
    )
    assert json.loads(said) == sorted({*LATENCY_S, *SHORT_S})
