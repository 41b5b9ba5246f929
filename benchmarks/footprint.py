"""What does the runtime cost a device? Start-up times, memory against video length, installed size.

    python benchmarks/footprint.py --bundle bundle --video clip.mp4 [--wheel]

Every figure is of a fresh process. Memory is the largest resident set while scoring 500 and 20,000
frames (the clip repeated, re-encoded small), report off. --wheel also builds the wheel and installs
it with [cpu] into an empty environment. Ends with one JSON line.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from fractions import Fraction
from pathlib import Path

import av

from sfn_rt.frames import open_source

SFN_RT = str(Path(sys.executable).with_name("sfn-rt"))


def seconds(command: list[str]) -> float:
    """Best wall time of three runs."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return min(times)


def peak_mb(command: list[str]) -> float:
    """Largest resident set of a command, in MB."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    return usage.ru_maxrss / 1024


def repeated(video: Path, n_frames: int, out: Path) -> Path:
    """`n_frames` frames of `video`, over and over, as one mp4."""
    with open_source(video) as source:
        images = [frame.image for frame, _ in zip(source, range(200), strict=False)]
    height, width = images[0].shape[:2]
    with av.open(out, "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25), options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = (
            width - width % 2,
            height - height % 2,
            "yuv420p",
        )
        for i in range(n_frames):
            image = images[i % len(images)][: stream.height, : stream.width]
            for packet in stream.encode(av.VideoFrame.from_ndarray(image.copy(), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return out


def installed_mb(folder: Path) -> float:
    """Size of the wheel with [cpu] in an empty environment."""
    root = Path(__file__).parents[1]
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(root)],
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=True)
    pip = [str(folder / "env" / "bin" / "python"), "-m", "pip", "install", "-q"]
    subprocess.run([*pip, f"{wheel}[cpu]"], check=True)
    files = (p for p in (folder / "env").rglob("*") if p.is_file() and not p.is_symlink())
    return sum(path.stat().st_size for path in files) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--long", type=int, default=20_000)
    parser.add_argument("--wheel", action="store_true")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    found: dict[str, float] = {"help_s": seconds([SFN_RT, "--help"])}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        five = repeated(asked.video, 5, folder / "five.mp4")

        def score(video: Path, name: str) -> list[str]:
            return [
                SFN_RT, "score", str(video), "--bundle", str(asked.bundle), "--out",
                str(folder / name), "--no-report", "--force",
            ]  # fmt: skip

        found["first_score_s"] = seconds(score(five, "five"))
        for n in (500, asked.long):
            video = repeated(asked.video, n, folder / f"{n}.mp4")
            found[f"peak_mb_{n}"] = peak_mb(score(video, str(n)))
        found["growth"] = found[f"peak_mb_{asked.long}"] / found["peak_mb_500"] - 1
        if asked.wheel:
            found["installed_mb"] = installed_mb(folder)
    for name, value in found.items():
        print(f"{name:<16}{value:10.3f}")
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
