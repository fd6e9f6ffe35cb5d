"""The Dockerfile: its stages and files exist, and its steps install what is locked."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
SCRIPT = ROOT / "scripts" / "container_install.sh"


def test_dockerfile_has_a_stage_for_cpus_and_one_for_cuda() -> None:
    stages = re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE)
    assert {"cpu", "cuda"} <= set(stages)
    assert set(re.findall(r"--from=(\S+)", DOCKERFILE)) <= set(stages)
    # the last stage of both says how to start
    parts = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
    assert sum('ENTRYPOINT ["minitron"]' in part for part in parts) == 2


def test_dockerfile_runs_a_script_that_is_there() -> None:
    assert DOCKERFILE.count(f"scripts/{SCRIPT.name} /opt/minitron") == 2
    assert SCRIPT.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert not {"scripts", "requirements.lock", "pyproject.toml", "quant"} & {*ignored}


def test_container_install_takes_every_locked_version() -> None:
    (command,) = re.findall(r"^(sed .*) requirements.lock >", SCRIPT.read_text(), re.MULTILINE)
    taken = subprocess.run(
        ["bash", "-c", f"{command} requirements.lock"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    lock = (ROOT / "requirements.lock").read_text()
    assert taken == re.findall(r"^([a-z0-9-]+==[^ \\\n]+)", lock, re.MULTILINE)
    assert "llama-cpp-python==0.3.36" in taken
