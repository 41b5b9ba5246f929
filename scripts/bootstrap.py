"""Make the workshop's environment in .venv: `make` runs this when pyproject.toml is newer.

Only the standard library, and syntax that an old Python 3 can read too, so that such a
Python answers with the message below and not with a SyntaxError. Run it again after an
interruption: it repairs what was left half done.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys

NEEDED = (3, 11)
NEWEST = 14  # of the minor versions looked for on the path
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
ANSWER_S = 5.0

# True only for an environment whose creation was not cut short: pip writes INSTALLER last.
WHOLE = f"""
import importlib.metadata, sys
whole = importlib.metadata.distribution("pip").read_text("INSTALLER")
sys.exit(not whole or sys.version_info[:2] < {NEEDED})
"""


def main() -> int:
    if sys.version_info[:2] < NEEDED:
        return rerun_with_newer_python()
    if not succeeds(PYTHON, "-c", WHOLE):
        make_venv()
    drop_half_installed()
    command = install_command(cpu_wheels=not has_nvidia_gpu() and index_answers())
    say(" ".join(command))
    if subprocess.call(command, cwd=ROOT) != 0:
        say(
            "error: pip could not install the packages; its message is above. Check the network "
            "and the free disk space (3 GB, or 10 GB on a machine with an NVIDIA GPU), then run "
            "the same command again: it continues where this one stopped"
        )
        return 2
    return 0


def rerun_with_newer_python() -> int:
    for minor in range(NEWEST, NEEDED[1] - 1, -1):
        found = shutil.which(f"python3.{minor}")
        if found and succeeds(found, "-c", "import venv"):
            return subprocess.call([found, os.path.abspath(__file__)])
    say(
        f"error: Python {NEEDED[0]}.{NEEDED[1]} or newer is needed; {sys.executable} is "
        f"{platform.python_version()}, and the path has no newer one. Install one from "
        "https://www.python.org/downloads, or name one: make PYTHON=/path/to/python3.12"
    )
    return 2


def make_venv() -> None:
    import venv

    say(f"making {VENV} with Python {platform.python_version()}")
    try:
        venv.EnvBuilder(clear=True, with_pip=True, symlinks=True).create(VENV)
    except (subprocess.CalledProcessError, ImportError):
        say(
            "error: this Python cannot make an environment with pip in it; on Debian and Ubuntu: "
            f"apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        )
        sys.exit(2)


def drop_half_installed() -> None:
    """Forget packages whose installation was cut short, so that pip installs them again."""
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.check_output([PYTHON, "-c", ask], universal_newlines=True).strip()
    for name in sorted(os.listdir(site)):
        path = os.path.join(site, name)
        half = name.endswith(".dist-info") and not os.path.exists(os.path.join(path, "INSTALLER"))
        if half:
            say(f"{name[: -len('.dist-info')]} was left half installed: it is installed again")
        if half or name.startswith("~"):  # pip's name for what it was about to replace
            shutil.rmtree(path, ignore_errors=True)


def install_command(cpu_wheels: bool) -> list[str]:
    extras = ["cpu", "train", "export", "dev"]
    if sys.platform == "linux" and platform.machine() == "x86_64":
        extras += ["genai", "rtx"]  # of both, wheels for the other systems come and go
    index = ["--extra-index-url", CPU_INDEX] if cpu_wheels else []
    pip = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check"]
    return [*pip, *index, "-e", f".[{','.join(extras)}]"]


def has_nvidia_gpu() -> bool:
    return succeeds("nvidia-smi")


def index_answers() -> bool:
    """Whether PyTorch's CPU wheels can be had. In a thread, as looking up a name may hang."""
    import http.client
    import threading
    import urllib.request

    answered = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(f"{CPU_INDEX}/torch/", timeout=ANSWER_S) as reply:
                answered.append(reply.status == 200)
        except (OSError, http.client.HTTPException) as error:
            say(f"{CPU_INDEX}: {error}")

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER_S)
    if not any(answered):
        say("no answer from PyTorch's CPU index: PyTorch comes from where pip looks by itself")
    return any(answered)


def succeeds(*command: str) -> bool:
    try:
        quiet = subprocess.DEVNULL
        return subprocess.call(command, stdin=quiet, stdout=quiet, stderr=quiet) == 0
    except OSError:
        return False


def say(text: str) -> None:
    sys.stderr.write(f"bootstrap: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say("interrupted; run the same command again to continue")
        sys.exit(130)
