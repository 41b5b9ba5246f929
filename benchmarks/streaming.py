"""How much does encoding every frame once save? The runtime's predictor against a naive window.

    python benchmarks/streaming.py --run runs/edge --bundle bundle --video clip.mp4 [--threads 2]

Both predict every frame of the same clip from the four before it, with the same weights, captions
left out (one fixed sentence embedding). `eager window` is what one writes first: PyTorch in
inference_mode, each frame's clip of four encoded anew, the SFFM dense. `runtime` is
sfn_rt.features on ONNX Runtime: each frame and difference encoded once. Turns alternate, because
machines are noisy; the best of each side is compared. Ends with one JSON line.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch

from sfn_rt.backends.ort import OrtBackend
from sfn_rt.bundle import load_bundle
from sfn_rt.evidence import BLOCK
from sfn_rt.features import Predictor
from sfn_rt.frames import open_source
from sfn_rt.preprocess import preprocess
from sfn_train.checkpoint import load_run
from sfn_train.model import SFN


def eager_window(model: SFN, frames: torch.Tensor, text: torch.Tensor) -> float:
    """Seconds to predict every frame of (n, 3, h, w) from its own clip."""
    observed = model.config.observed
    start = time.perf_counter()
    with torch.inference_mode():
        for t in range(observed, len(frames)):
            model(frames[None, t - observed : t + 1], text)
    return time.perf_counter() - start


def runtime(backend: OrtBackend, observed: int, frames: np.ndarray, text: np.ndarray) -> float:
    """Seconds for the same frames, block by block."""
    predictor = Predictor(backend, observed)
    start = time.perf_counter()
    for i in range(0, len(frames), BLOCK):
        block = frames[i : i + BLOCK]
        encoded = predictor.encode(block)
        predictor.decode(encoded, np.repeat(text, encoded.n_predicted, axis=0))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--frames", type=int, default=84)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    run, bundle = load_run(asked.run), load_bundle(asked.bundle)
    model = run.model.eval()
    if not isinstance(model, SFN):
        parser.error(f"{asked.run} is of another system: only SFN-VAD streams")
    c = model.config
    with open_source(asked.video) as source:
        images = [frame.image for frame, _ in zip(source, range(asked.frames), strict=False)]
    frames = np.stack([preprocess(image, bundle.manifest.preprocessing) for image in images])
    text = np.ones((1, c.text_dim), np.float32) / np.float32(np.sqrt(c.text_dim))
    n = len(frames) - c.observed
    eager: list[float] = []
    streamed: list[float] = []
    with OrtBackend.from_bundle(bundle, threads=asked.threads) as backend:
        for _ in range(asked.rounds + 1):  # the first round warms up
            tensor = torch.from_numpy(frames)
            eager.append(eager_window(model, tensor, torch.from_numpy(text)[None]))
            streamed.append(runtime(backend, c.observed, frames, text))
    best = {"eager window": min(eager[1:]), "runtime": min(streamed[1:])}
    for name, seconds in best.items():
        print(f"{name:<14}{1e3 * seconds / n:8.2f} ms a frame{n / seconds:10.1f} frames/s")
    ratio = best["eager window"] / best["runtime"]
    print(f"the runtime is {ratio:.1f} times as fast")
    line = {
        "eager_ms": 1e3 * best["eager window"] / n,
        "runtime_ms": 1e3 * best["runtime"] / n,
        "ratio": ratio,
        "frames": n,
        "rounds": asked.rounds,
        "threads": asked.threads,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    if asked.out:
        asked.out.write_text(json.dumps(line, indent=2) + "\n")
    print(json.dumps(line))


if __name__ == "__main__":
    main()
