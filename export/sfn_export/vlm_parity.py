"""Does a VLM's exported graphs say what PyTorch says? Part by part, then captions as a whole.

A caption is a chain of choices, each of the best of many words: where the two best are nearly
equal, two correct programs may choose differently, and then go on differently. So PyTorch reads the
device's own caption, and each of its words must be the best in PyTorch too, or as good as that.

Axes: B clips, L positions of the prompt, P cached ones, k tokens of a caption, V vocabulary.
"""

import re
from dataclasses import asdict, dataclass

import numpy as np
import torch

from sfn_export.exceptions import ParityError
from sfn_export.parity import (
    SCALES,
    TOLERANCE,
    Difference,
    ParityReport,
    assert_parity,
    check_parts,
)
from sfn_rt.backends.base import Array, Backend
from sfn_rt.frames import Image
from sfn_rt.semantics import vlm as device
from sfn_train.captions.vlm import FRAMES, Vlm

BATCHES, PROMPT, STEPS = (1, 3), 21, 2
CLIPS, TOKENS = 2, 12  # of the whole path
LAYER = re.compile(r"\.(\d+)\.")
WORSE = 1e-4  # of the largest logit: what a chosen word's logit may be below the best


@dataclass(frozen=True)
class CaptionReport:
    """The whole path; it is only ever made of comparisons that passed."""

    tokens: int
    ties: int  # chosen by the device, and as good as PyTorch's own choice
    worst: float  # largest distance to PyTorch's best, of the largest logit

    def text(self) -> str:
        """For people."""
        return (
            f"captions                 {self.tokens} tokens as PyTorch's, {self.ties} of them ties"
        )

    def to_json(self) -> dict[str, object]:
        """For programs."""
        return asdict(self)


def check_vlm_parts(reference: Backend, ours: Backend) -> ParityReport:
    """Tower and projector on random inputs, the language model on a prompt and steps behind it."""
    pictures = check_parts(reference, ours, parts=("vision", "projector"))
    differences = list(pictures.differences)
    for kind, scale in SCALES.items():
        for batch in BATCHES:
            differences += _check_language(reference, ours, batch, kind, scale)
    return ParityReport(differences=tuple(differences), rerouted=())


def _check_language(
    reference: Backend, ours: Backend, batch: int, kind: str, scale: float
) -> list[Difference]:
    """A prompt, then steps of one position on the cache that PyTorch has by then."""
    inputs = reference.parts["language"].inputs
    width = int(inputs[0].shape[-1])
    random = np.random.default_rng(batch)
    found: list[Difference] = []
    cache: dict[str, Array] = {
        tensor.name: np.zeros((batch, int(tensor.shape[1]), 0, int(tensor.shape[3])), np.float32)
        for tensor in inputs[1:]
    }
    for step in range(1 + STEPS):
        length = 1 if step else PROMPT
        embeds = (scale * random.standard_normal((batch, length, width))).astype(np.float32)
        feeds = {"inputs_embeds": embeds, **cache}
        expected, actual = (which.infer("language", feeds) for which in (reference, ours))
        case = f"{kind} input, batch {batch}, {'step' if step else 'prompt'}"
        for name, value in expected.items():
            tensor, where = f"language.{name}", case
            if layer := LAYER.search(name):  # one name for all layers: a report has a line a name
                tensor, where = f"language.{LAYER.sub('.', name)}", f"{case}, layer {layer[1]}"
            found.append(assert_parity(tensor, value, actual[name], TOLERANCE["fp32"], where))
        cache = {name: expected[name.replace("past_key_values", "present")] for name in cache}
    return found


@torch.inference_mode()
def check_captions(vlm: Vlm, ours: "device.Vlm") -> CaptionReport:
    """Captions of random pictures from the device's captioner, read by PyTorch."""
    frames = random_frames(CLIPS + FRAMES - 1)
    clips = [tuple(range(i, i + FRAMES)) for i in range(CLIPS)]
    hidden = ours.see(frames)  # (F, 1 + N, C)
    said = ours.describe([hidden[list(clip)] for clip in clips])
    prompts = vlm.prompts(frames, clips)  # (B, L, D)
    tokens = ties = 0
    worst = 0.0
    for i, one in enumerate(said):
        ids = torch.tensor([one.tokens], device=vlm.device)  # (1, k)
        words = vlm.model.get_input_embeddings()(ids[:, :-1])
        logits = vlm.model(
            inputs_embeds=torch.cat([prompts[i : i + 1], words], dim=1),
            logits_to_keep=len(one.tokens),
        ).logits[0].float()  # (k, V)  # fmt: skip
        chosen = logits.gather(1, ids.T)[:, 0]  # (k,)
        below = (logits.max(dim=1).values - chosen) / logits.abs().max()
        if not float(below.max()) <= WORSE:
            at = int(below.argmax())
            raise ParityError(
                f"caption {i}: token {at} is {one.tokens[at]}, PyTorch says "
                f"{int(logits[at].argmax())}: its logit is {float(below[at]):.1e} of the largest "
                f"below the best (budget {WORSE:.0e}); budget reason: only ties may differ"
            )
        tokens, ties = tokens + len(one.tokens), ties + int((below > 0).sum())
        worst = max(worst, float(below.max()))
    return CaptionReport(tokens, ties, worst)


def random_frames(number: int) -> list[Image]:
    """Pictures that have nothing in common, of another shape than the tile."""
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(number)]
