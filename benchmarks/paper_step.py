"""Does the paper's model train at full size? One step on a CPU, its vision tower of random weights.

    python benchmarks/paper_step.py [--config paper_ped2] [--set model.joint_attention=4]

A tower of the size of InternVL2.5-1B's is written to a temporary folder by transformers' own class
and read back by the code that reads a user's weights. The clip is noise, its embedding too: what is
shown is that losses are finite and where gradients arrive, never how well anything is predicted.
Prints a table, then one line of JSON; exit code 1 if a loss is not finite, a trained parameter
has no gradient, or a frozen one has.
"""

import argparse
import json
import math
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("runtime", "train")]

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from sfn_train.config import Config, read_config  # noqa: E402
from sfn_train.loop import Training  # noqa: E402
from sfn_train.systems import training_losses  # noqa: E402

TOWER = {  # InternViT-300M-448px, as InternVL2.5-1B has it
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "image_size": [448, 448],
    "patch_size": [14, 14],
    "attention_bias": True,
    "layer_norm_eps": 1e-6,
}
LANGUAGE = {  # the tower does not need it, the folder's layout does
    "model_type": "qwen2",
    "vocab_size": 8,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="paper_ped2")
    parser.add_argument("--set", action="append", default=[], dest="changes")
    parser.add_argument("--batch", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own, so that the peak is of the step alone.
        maker = multiprocessing.get_context("spawn").Process(target=make_tower, args=(folder,))
        maker.start()
        maker.join()
        assert maker.exitcode == 0
        changes = [f"model.tower={folder}", f"train.batch={arguments.batch}", *arguments.changes]
        report = measure(read_config(arguments.config, changes))
    print_table(report)
    print(json.dumps(report))
    failed = report["without_gradient"] or report["frozen_with_gradient"]
    sys.exit(1 if failed or not all(map(math.isfinite, report["losses"].values())) else 0)


def make_tower(folder: str) -> None:
    """An InternVL folder in bfloat16, as published, whose tower has its full size."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration
    from transformers.utils import logging

    quiet: Any = logging.disable_progress_bar  # untyped
    quiet()
    torch.manual_seed(0)
    config = InternVLConfig(vision_config=TOWER, text_config=LANGUAGE, image_token_id=0)
    model: nn.Module = InternVLForConditionalGeneration(config)
    model.to(torch.bfloat16)
    saved: Any = model
    saved.save_pretrained(folder)


def measure(config: Config) -> dict[str, Any]:
    """One step of the optimiser, and what it left behind."""
    started = time.perf_counter()
    torch.manual_seed(config.train.seed)
    training = Training(config)
    loaded = time.perf_counter()
    network, optimizer = training.model.train(), training.configure_optimizers()
    before = [parameter.detach().clone() for parameter in trained(network).values()]
    begin, begin_cpu = time.perf_counter(), time.process_time()
    losses = training_losses(network, noise(config), config)
    forward = time.perf_counter()
    losses["total"].backward()
    optimizer.step()
    end, end_cpu = time.perf_counter(), time.process_time()
    parameters = trained(network)
    gradients = {name: parameter.grad for name, parameter in parameters.items()}
    frozen = [p for p in network.parameters() if not p.requires_grad]
    pairs = zip(before, parameters.values(), strict=True)
    return {
        "benchmark": "paper_step",
        "profile": config.profile,
        "device": {"threads": torch.get_num_threads(), "load": round(os.getloadavg()[0], 1)},
        "precision": "fp32",
        "batch": config.train.batch,
        "joint_attention": config.sfn.joint_attention,
        "trained_parameters": sum(p.numel() for p in parameters.values()),
        "frozen_parameters": sum(p.numel() for p in frozen),
        "losses": {name: float(loss.detach()) for name, loss in losses.items()},
        "tensors": len(gradients),
        "without_gradient": [name for name, gradient in gradients.items() if gradient is None],
        "with_gradient_zero": [
            name
            for name, gradient in gradients.items()
            if gradient is not None and is_zero(gradient)
        ],
        "unchanged": sum(bool((old == new).all()) for old, new in pairs),
        "frozen_with_gradient": sum(p.grad is not None for p in frozen),
        "load_s": round(loaded - started, 1),
        "forward_s": round(forward - begin, 1),
        "step_s": round(end - begin, 1),
        "step_cpu_s": round(end_cpu - begin_cpu, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
    }


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def is_zero(gradient: Tensor) -> bool:
    return not gradient.count_nonzero()


def noise(config: Config) -> dict[str, Tensor]:
    """Runs of normalised frames that change a little, and unit embeddings."""
    model, length = config.sfn, config.data.run_length
    random = torch.Generator().manual_seed(0)
    size = (config.train.batch, 1, 3, model.frame_height, model.frame_width)
    scene = torch.randn(size, generator=random)
    change = torch.randn(size[0], length, *size[2:], generator=random)
    text = torch.randn(size[0], config.clips_per_run, model.text_width, generator=random)
    return {"frames": scene + 0.1 * change, "text": nn.functional.normalize(text, dim=-1)}


def print_table(report: dict[str, Any]) -> None:
    losses = ", ".join(f"{name} {value:.4f}" for name, value in report["losses"].items())
    zero = report["with_gradient_zero"]
    print(f"{report['profile']}, batch {report['batch']}, fp32, {report['device']}\n")
    print("| what | measured |\n|---|---|")
    print(
        f"| trained parameters | {report['trained_parameters']:,} in {report['tensors']} tensors |"
    )
    print(f"| frozen parameters | {report['frozen_parameters']:,} |")
    print(f"| losses | {losses} |")
    print(f"| trained tensors without a gradient | {len(report['without_gradient'])} |")
    print(f"| trained tensors whose gradient is exactly 0 | {len(zero)} |")
    print(f"| trained tensors that the step left as they were | {report['unchanged']} |")
    print(f"| frozen tensors with a gradient | {report['frozen_with_gradient']} |")
    print(f"| reading the tower, making the network | {report['load_s']} s |")
    print(f"| one step (forward {report['forward_s']} s) | {report['step_s']} s |")
    print(f"| the same in processor time, all threads | {report['step_cpu_s']} s |")
    print(f"| largest resident set | {report['peak_gb']} GB |\n")


if __name__ == "__main__":
    main()
