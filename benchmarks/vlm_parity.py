"""Does a VLM of InternVL2.5-1B's size export, compute what PyTorch computes, and at what cost?

    python benchmarks/vlm_parity.py [--tiny] [--folder FOLDER] [--write]

The weights are random, of the published sizes and types; the ways are export's own. Each step is a
process of its own, so that its peak is its own: what exporting takes (PyTorch, the trace, the
graph), and what a device takes that has the graph alone. Differences are of the largest magnitude
expected, on inputs of unit scale. Times are of this machine, with every thread it has; beside the
wall's stands the processor's, which does not grow with what else runs here: divided by the threads
it is what an idle machine would take at best.

A step of the full size takes up to 10 GB of memory, all of them 9 GB of disk and some minutes;
--tiny goes the same way in seconds. With --folder the graphs stay, and --steps does only those
named again. Prints a table, then one line of JSON; --write also puts that into benchmarks/results.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = [str(ROOT / folder) for folder in ("runtime", "train", "export")]
sys.path[:0] = PACKAGES

import numpy as np  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
MUST, AIM = 1e-3, 1e-4  # of the tower, relative
PROMPT, SAID = 1100, 32  # tokens: four frames and the question; a short caption
FULL: dict[str, Any] = {
    "image": 448,
    "vision": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "vocabulary": 151_674,
    "text": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
}
TINY: dict[str, Any] = {
    "image": 56,
    "vision": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "vocabulary": 400,
    "text": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
Step = Callable[[Path, dict[str, Any]], dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="the same way in seconds")
    parser.add_argument("--folder", type=Path, help="keep weights and graphs there")
    parser.add_argument("--steps", help="only these, comma separated; the others as they were")
    parser.add_argument("--write", action="store_true", help="also write the results")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.step:
        done = STEPS[asked.step](asked.folder, TINY if asked.tiny else FULL)
        done["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
        print(json.dumps(done))
        return
    with tempfile.TemporaryDirectory(prefix="sfn-vlm-") as temporary:
        folder = asked.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        wanted = set(asked.steps.split(",")) if asked.steps else set(STEPS)
        rows = {step: run_step(step, folder, asked.tiny, step in wanted) for step in STEPS}
    report = {
        "benchmark": "vlm_parity",
        "model": "tiny" if asked.tiny else "InternVL2.5-1B's sizes, random weights",
        "device": {"processor": processor(), "threads": os.cpu_count()},
        "prompt": PROMPT,
        "steps": rows,
    }
    print_table(rows)
    if asked.write:
        RESULTS.mkdir(exist_ok=True)
        text = json.dumps(report, indent=1) + "\n"
        (RESULTS / "vlm_cpu.json").write_text(text, encoding="utf-8")
    print("\n" + json.dumps(report))
    if (worst := max(row.get("difference", 0.0) for row in rows.values())) > MUST:
        raise SystemExit(f"a part differs from PyTorch by {worst:.1e}, over {MUST:.0e}")


def run_step(step: str, folder: Path, tiny: bool, wanted: bool) -> dict[str, Any]:
    """One step in a process of its own; or what it found before."""
    kept = folder / f"{step.replace(' ', '_')}.json"
    if not wanted:
        if not kept.is_file():
            raise SystemExit(f"{kept} does not exist; do the step {step!r}, too")
        before: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return before
    print(f"{step} ...", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, "--step", step, "--folder", str(folder)]
    done = subprocess.run([*command, *(["--tiny"] if tiny else [])], stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(f"{step} failed")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    kept.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return row


def print_table(rows: dict[str, dict[str, Any]]) -> None:
    """What every step found, for people."""
    units = {
        "difference": ("difference", ".1e"),
        "megabytes": ("MB", ".0f"),
        "export_s": ("export, s", ".0f"),
        "seconds": ("s a frame", ".2f"),
        "cpu_s": ("processor s", ".2f"),
        "prefill_s": ("prefill, s", ".1f"),
        "prefill_cpu_s": ("processor s", ".1f"),
        "tokens_per_s": ("tokens/s", ".1f"),
        "tokens_per_cpu_s": ("tokens/processor s", ".1f"),
        "peak_gb": ("peak, GB", ".1f"),
    }
    print(f"| step | {' | '.join(name for name, _ in units.values())} |")
    print("|---" * (1 + len(units)) + "|")
    for step, row in rows.items():
        cells = [format(row[key], style) if key in row else "" for key, (_, style) in units.items()]
        print(f"| {step} | {' | '.join(cells)} |")
    print(f"\nthe tower must be within {MUST:.0e}, the aim is {AIM:.0e}")


# --------------------------------------------------------------------------------- steps: workshop


def make_weights(folder: Path, sizes: dict[str, Any]) -> dict[str, Any]:
    """Random weights in bfloat16, of ordinary size everywhere: nothing is zero, one, or noise."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import (
        InternVLConfig,
        InternVLForConditionalGeneration,
        PreTrainedTokenizerFast,
    )

    side, patch = sizes["image"], 14
    words = {"<unk>": 0, "<eos>": 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    untyped: Any = PreTrainedTokenizerFast
    fast = untyped(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")
    fast.save_pretrained(folder / "weights")
    config = InternVLConfig(
        vision_config={
            **sizes["vision"],
            "intermediate_size": 4 * sizes["vision"]["hidden_size"],
            "image_size": [side, side],
            "patch_size": [patch, patch],
            "attention_bias": True,
        },
        text_config={
            **sizes["text"],
            "model_type": "qwen2",
            "vocab_size": sizes["vocabulary"],
            "max_position_embeddings": 32768,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 1,
        },
        image_token_id=sizes["vocabulary"] - 1,
        image_seq_length=(side // patch // 2) ** 2,
        tie_word_embeddings=False,
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        model: Any = InternVLForConditionalGeneration(config)
    model = model.to_empty(device="cpu")
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=random, dtype=torch.float32)
            if parameter.dim() > 1 and "embed" not in name:
                noise *= parameter[0].numel() ** -0.5
            elif "norm" in name.lower() and name.endswith("weight"):
                noise = 1 + 0.2 * noise
            else:
                noise *= 0.1 if "lambda" in name else 0.3
            parameter.copy_(noise)
    model.save_pretrained(folder / "weights")
    return {"parameters": sum(p.numel() for p in model.parameters())}


def export_vision(folder: Path, sizes: dict[str, Any]) -> dict[str, Any]:
    """The tower against PyTorch, on a batch of two frames of unit scale."""
    import torch

    from sfn_export.trace import tower_graph
    from sfn_train.model.tower import VisionTower

    tower = VisionTower.load(str(folder / "weights"))
    begin, path = time.perf_counter(), folder / "vision.onnx"
    tower_graph(tower, path)
    seconds = time.perf_counter() - begin
    feeds = {"frame": unit((2, 3, sizes["image"], sizes["image"]))}
    with torch.inference_mode():
        expected = [t.numpy() for t in tower(torch.from_numpy(feeds["frame"]))]
    return exported(path, seconds, feeds, dict(zip(("hidden", "embedded"), expected, strict=True)))


def export_projector(folder: Path, sizes: dict[str, Any]) -> dict[str, Any]:
    """The projector against transformers' own, on hidden states of two frames."""
    from sfn_export.trace import traced
    from sfn_export.vlm_parts import ProjectorPart, TorchVlm, projector_spec
    from sfn_rt.backends.base import TensorSpec

    model = load_model(folder)
    n = (sizes["image"] // 14) ** 2
    shape = (1 + n, sizes["vision"]["hidden_size"])
    spec = projector_spec(model, TensorSpec("hidden", "float32", ("batch", *shape)))
    begin, path = time.perf_counter(), folder / "projector.onnx"
    traced("projector", ProjectorPart(model), spec, path)
    seconds = time.perf_counter() - begin
    feeds = {"hidden": unit((2, *shape))}
    expected = TorchVlm(model, {"projector": spec}).infer("projector", feeds)
    return exported(path, seconds, feeds, expected)


def export_language(folder: Path, sizes: dict[str, Any]) -> dict[str, Any]:
    """The language model against transformers' own, on a short prompt."""
    from sfn_export.trace import traced
    from sfn_export.vlm import write_embeddings
    from sfn_export.vlm_parts import LanguagePart, TorchVlm, language_spec

    model = load_model(folder)
    write_embeddings(folder / "weights", folder / "embeddings.npy")
    spec, path = language_spec(model), folder / "language.onnx"
    begin = time.perf_counter()
    traced("language", LanguagePart(model), spec, path)
    seconds = time.perf_counter() - begin
    feeds = {"inputs_embeds": unit((1, 32, sizes["text"]["hidden_size"]))}
    for tensor in spec.inputs[1:]:
        heads, head = int(tensor.shape[1]), int(tensor.shape[3])
        feeds[tensor.name] = np.zeros((1, heads, 0, head), np.float32)
    expected = TorchVlm(model, {"language": spec}).infer("language", feeds)
    del model
    return exported(path, seconds, feeds, expected)


def build_int4(folder: Path, sizes: dict[str, Any]) -> dict[str, Any]:
    """The same language model by onnxruntime-genai's builder, whose process is counted too."""
    from sfn_export.vlm_int4 import write_variant
    from sfn_rt.backends.ort import OrtBackend

    with OrtBackend({"language": folder / "language.onnx"}) as backend:
        spec = backend.parts["language"]
    begin, path = time.perf_counter(), folder / "language.int4.onnx"
    write_variant(folder / "weights", "int4", path, spec)
    seconds = time.perf_counter() - begin
    builder = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    return {"megabytes": megabytes(path), "export_s": seconds, "builder_peak_gb": round(builder, 2)}


def load_model(folder: Path) -> Any:
    import torch
    from transformers import InternVLForConditionalGeneration

    kind: Any = InternVLForConditionalGeneration
    return kind.from_pretrained(str(folder / "weights"), dtype=torch.float32).eval()


def exported(
    path: Path, seconds: float, feeds: dict[str, Any], expected: dict[str, Any]
) -> dict[str, Any]:
    """How far a graph is from what PyTorch made of the same feeds."""
    from sfn_export.parity import measure
    from sfn_rt.backends.ort import OrtBackend

    with OrtBackend({path.stem: path}) as backend:
        actual = backend.infer(path.stem, feeds)
    found = [measure(name, value, actual[name], "unit") for name, value in expected.items()]
    worst = max(found, key=lambda difference: difference.max_abs)
    return {
        "difference": worst.max_abs,
        "tensor": worst.tensor,
        "sqnr_db": min(round(difference.sqnr_db, 1) for difference in found),
        "megabytes": megabytes(path),
        "export_s": seconds,
    }


# ---------------------------------------------------------------------------------- steps: device


def see(folder: Path, sizes: dict[str, Any]) -> dict[str, Any]:
    """Seconds a frame of the tower alone, on ONNX Runtime."""
    return each_frame(folder, "vision", {"frame": unit((1, 3, sizes["image"], sizes["image"]))})


def project(folder: Path, sizes: dict[str, Any]) -> dict[str, Any]:
    """Seconds a frame of the projector alone."""
    n = (sizes["image"] // 14) ** 2
    return each_frame(
        folder, "projector", {"hidden": unit((1, 1 + n, sizes["vision"]["hidden_size"]))}
    )


def each_frame(folder: Path, part: str, feeds: dict[str, Any]) -> dict[str, Any]:
    """Best of three, after one to warm up."""
    from sfn_rt.backends.ort import OrtBackend

    times = []
    with OrtBackend({part: folder / f"{part}.onnx"}) as backend:
        for _ in range(4):
            begin = clocks()
            backend.infer(part, feeds)
            times.append(clocks() - begin)
    wall, processor = np.min(times[1:], axis=0)
    return {"seconds": float(wall), "cpu_s": float(processor)}


def say(folder: Path, file: str) -> dict[str, Any]:
    """Prefill and decode as the device's captioner does them."""
    from sfn_rt.backends.ort import OrtBackend
    from sfn_rt.semantics.language import Embeddings, LanguageModel

    embeddings = Embeddings(folder / "embeddings.npy", "bfloat16")
    with OrtBackend({"language": folder / file}) as backend:
        language = LanguageModel(backend, embeddings, file)
        ids = np.random.default_rng(0).integers(0, embeddings.shape[0], PROMPT)
        begin = clocks()
        steps = language.stream(embeddings[ids][None], (-1,), SAID)  # nothing stops it
        next(steps)
        first = clocks()
        n_said = sum(1 for _ in steps)
    (wall, processor), (prefill, prefill_processor) = clocks() - first, first - begin
    return {
        "prefill_s": float(prefill),
        "prefill_cpu_s": float(prefill_processor),
        "tokens_per_s": n_said / float(wall),
        "tokens_per_cpu_s": n_said / float(processor),
    }


def clocks() -> Any:
    """Seconds of the wall, and of the processor in all threads of this process."""
    return np.array([time.perf_counter(), time.process_time()])


def unit(shape: tuple[int, ...]) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def megabytes(path: Path) -> float:
    """Of a graph and the weights beside it."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")) / 1e6


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "?")


STEPS: dict[str, Step] = {
    "random weights": make_weights,
    "export vision": export_vision,
    "export projector": export_projector,
    "export language": export_language,
    "build language int4": build_int4,
    "vision": see,
    "projector": project,
    "language fp32": lambda folder, sizes: say(folder, "language.onnx"),
    "language int4": lambda folder, sizes: say(folder, "language.int4.onnx"),
}


if __name__ == "__main__":
    main()
