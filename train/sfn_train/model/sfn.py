"""The whole network: TMFE, then MJAD with an SFFM behind each of its blocks.

A clip is T observed frames and the frame to predict. A run is a longer stretch of consecutive
frames, and holds one clip a frame from the fifth on; neighbouring clips share their frames, so a
run encodes each frame and each difference once, in training just as on the device.

Axes: B runs (or clips), L frames of a run, P = L - T clips of a run, T observed, N patches,
D width.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sfn_train.model.config import ModelConfig
from sfn_train.model.mjad import MJAD
from sfn_train.model.sffm import Routing
from sfn_train.model.student import Student
from sfn_train.model.tmfe import AppearanceEncoder, Fusion, MotionEncoder


class Prediction(NamedTuple):
    """What the model expects to see next."""

    next_frame: Tensor | None  # (B, 3, H, W) in normalised pixels; None without a picture branch
    semantic: Tensor | None  # (B, K S) sentence embeddings, not normalised; None with text off
    routings: list[Routing]  # one an SFFM
    distilled: Tensor | None = None  # (B,) semantic error to expect; None without a student


class Encoded(NamedTuple):
    """What the decoder takes besides text; what the config switches off is None."""

    appearance: Tensor | None  # (B, T, 1 + N, D)
    motion: Tensor | None  # (B, T - 1, 1 + N, C_m)
    skip: Tensor | None  # (B, N, D) of the last observed frame
    last_frame: Tensor | None  # (B, 3, H, W)


# What the frozen tower says of a run's frames: hidden (B, L, 1 + N, C), embedded (B, L, N, C).
Features = tuple[Tensor, Tensor]


class Decoder(nn.Module):
    """Fusion and MJAD: everything that sees a whole clip. The third exported part.

    The student sees what fusion does, the text apart; while the others learn it does not run.
    """

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.fusion = Fusion(c)
        self.mjad = MJAD(c)
        self.student = Student(c) if c.has_student else None

    def forward(
        self,
        appearance: Tensor | None,
        motion: Tensor | None,
        text: Tensor | None,
        skip: Tensor | None,
        last_frame: Tensor | None,
    ) -> Prediction:
        """(B, T, 1 + N, D), (B, T - 1, 1 + N, C_m), (B, K S), (B, N, D) and (B, 3, H, W).

        What the config switches off is None; `last_frame` is None where the whole frame is drawn.
        """
        found = Prediction(*self.mjad(self.fusion(appearance, motion, text), skip, last_frame))
        if self.student is None or self.training:
            return found
        return found._replace(distilled=self.student(appearance, motion))


class SFN(nn.Module):
    """SFN-VAD: predicts the next frame and the clip's meaning from normal life it has seen."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.appearance = AppearanceEncoder(config) if config.use_appearance else None
        self.motion = MotionEncoder(config) if config.use_motion else None
        self.decoder = Decoder(config)

    def forward(
        self, frames: Tensor, text: Tensor | None, features: Features | None = None
    ) -> Prediction:
        """Predict from runs (B, L, 3, H, W): every frame that has T before it, in order.

        `text` is (B, P, K S), the caption embeddings of each clip. `features` stand for the frozen
        tower, which then does not run. The last frame of a run is only ever a target, so it is not
        encoded. Returns B * P predictions, run by run.
        """
        seen = self.encode(frames[:, :-1], features)
        said = text.flatten(0, 1) if self.config.use_text and text is not None else None
        prediction: Prediction = self.decoder(
            seen.appearance, seen.motion, said, seen.skip, seen.last_frame
        )
        return prediction

    def encode(self, observed: Tensor, features: Features | None = None) -> Encoded:
        """What the decoder takes besides text, of every clip in (B, L, 3, H, W) observed frames.

        A clip a row, run by run: B (L - T + 1) of them.
        """
        c = self.config
        appearance = skip = motion = last = None
        if self.appearance is not None:
            if features is None:
                tokens, embedded = self.appearance(observed.flatten(0, 1))
            else:
                seen = (x[:, : observed.shape[1]].flatten(0, 1).float() for x in features)
                tokens, embedded = self.appearance.projected(*seen)
            clips = clips_of(tokens.unflatten(0, observed.shape[:2]), c.observed)
            appearance = clips.flatten(0, 1)  # (B P, T, 1 + N, D)
            skips = embedded.unflatten(0, observed.shape[:2])[:, c.observed - 1 :]
            skip = skips.flatten(0, 1)  # (B P, N, D)
        if self.motion is not None:
            difference = observed[:, 1:] - observed[:, :-1]  # (B, L - 2, 3, H, W)
            pairs = self.motion(difference.flatten(0, 1)).unflatten(0, difference.shape[:2])
            motion = clips_of(pairs, c.observed - 1).flatten(0, 1)
        if c.has_picture and c.predict == "change":
            last = observed[:, c.observed - 1 :].flatten(0, 1)  # (B P, 3, H, W)
        return Encoded(appearance, motion, skip, last)


def clips_of(features: Tensor, length: int) -> Tensor:
    """Sliding windows of a run's features (B, L, ...) to (B, L - length + 1, length, ...)."""
    n = features.shape[1] - length + 1
    return torch.stack([features[:, i : i + n] for i in range(length)], dim=2)
