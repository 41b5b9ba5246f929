"""The captioning half of the semantic branch, paper Eq. (2): four frames and a prompt to English.

InternVL in transformers' native class, from a local folder of safetensors; nothing is fetched and
no code of the folder runs. Every frame is one tile, resized and normalised by `sfn_rt.preprocess`.

Axes: B clips, F distinct frames of them, T frames a clip, L tokens of the prompt, D width of the
language model, N its tokens a tile.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfn_rt.exceptions import DataError
from sfn_rt.frames import Image
from sfn_rt.preprocess import Preprocessing, preprocess
from sfn_rt.semantics.caption_text import NOTHING_SAID, clean_caption
from sfn_train.weights.folder import (
    CONFIG,
    CONVERT,
    Kind,
    compare_shapes,
    fingerprint,
    hash_files,
    kind_of,
    list_tensors,
    read_json,
)
from sfn_train.weights.internvl import (
    IMAGE_TOKEN,
    build_config,
    drop_tied,
    expected_shapes,
    stored_name,
)
from sfn_train.weights.quiet import quiet
from sfn_train.weights.tokenizer import TOKENIZER_FILES, check_vocabulary, load_tokenizer

FRAMES = 4  # T
QUESTION = (
    "Describe the scene in the video segment, what objects are present, and what is each person "
    "doing?"
)
END_OF_TURN = "<|im_end|>"

# What of a weights folder decides its captions.
DECISIVE = ("*.safetensors", CONFIG, "generation_config.json", *TOKENIZER_FILES)

Clip = tuple[int, ...]  # T indices into the frames given with it


@dataclass(frozen=True)
class Said:
    """One caption."""

    text: str
    cut: bool  # it had not ended at the most tokens allowed


def full_prompt(question: str = QUESTION) -> str:
    """The question behind its frames: `Frame1: <image>` and so on, a line each."""
    return "".join(f"Frame{i}: <image>\n" for i in range(1, FRAMES + 1)) + question


def read_tile(folder: Path) -> Preprocessing:
    """How the model in `folder` sees a frame; reads its config alone."""
    height, width = _read_config(folder).vision_config.image_size
    return Preprocessing(height=height, width=width, resize="bicubic")


def tile_settings(tile: Preprocessing) -> dict[str, Any]:
    """As JSON gives them back."""
    return asdict(tile) | {"mean": list(tile.mean), "std": list(tile.std)}


def model_sha256(folder: Path) -> str:
    """Names the model: its weights, config, tokenizer and chat template."""
    return fingerprint(hash_files({file for name in DECISIVE for file in folder.glob(name)}))


class Vlm:
    """A vision-language model that describes clips, greedily and in batches."""

    def __init__(
        self,
        folder: Path,
        *,
        question: str = QUESTION,
        max_tokens: int = 1024,
        device: str | None = None,
    ) -> None:
        import transformers

        greedy: Any = transformers.GenerationConfig  # untyped

        self.folder, self.tile = folder, read_tile(folder)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        with quiet():
            model: Any = transformers.InternVLForConditionalGeneration.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, dtype=dtype
            )
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.tokenizer = load_tokenizer(folder)
        n_embeddings = self.model.get_input_embeddings().num_embeddings
        check_vocabulary(self.tokenizer, n_embeddings, self.model.config.image_token_id, folder)
        self.prompt = full_prompt(question)
        self.prompt_ids = self._tokenise(folder)  # (1, L)
        self.max_tokens = max_tokens
        stops = _stops(model, self.tokenizer)
        # In place of the folder's own: temperatures and penalties there are not greedy.
        self.model.generation_config = greedy(
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_tokens,
            eos_token_id=stops,
            pad_token_id=stops[0],  # behind an end, where nothing is read
        )
        self.stops = frozenset(stops)
        self.most: int | None = None  # clips that fitted into memory, once some did not

    def caption(self, frames: Sequence[Image], clips: Sequence[Clip]) -> list[Said]:
        """Describe each clip; where the GPU's memory does not hold all of them, in parts."""
        said: list[Said] = []
        while len(said) < len(clips):
            part = clips[len(said) :][: self.most]
            try:
                said += self._describe(frames, part)
                continue
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise DataError(
                        f"the memory of {self.device} does not hold one clip at {self.max_tokens} "
                        f"tokens; lower --max-tokens, or use a GPU with more memory"
                    ) from None
            self.most = (len(part) + 1) // 2
            torch.cuda.empty_cache()  # outside of `except`, which keeps the failed tensors alive
        return said

    @torch.inference_mode()
    def prompts(self, frames: Sequence[Image], clips: Sequence[Clip]) -> Tensor:
        """(B, L, D): the prompt's words, with each clip's own pictures in it."""
        used = sorted({index for clip in clips for index in clip})
        place = {index: i for i, index in enumerate(used)}
        tiles = np.stack([preprocess(frames[index], self.tile) for index in used])
        pixels = torch.from_numpy(tiles).to(self.device)  # (F, 3, h, w)
        seen = self.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
        order = torch.tensor([[place[i] for i in clip] for clip in clips], device=self.device)
        # Neighbouring clips share three of four frames: each is looked at once. All prompts are of
        # one length, so a batch needs no padding.
        embeds: Tensor = self.model.get_input_embeddings()(self.prompt_ids).repeat(len(clips), 1, 1)
        where = (self.prompt_ids == self.model.config.image_token_id).expand(len(clips), -1)
        embeds[where] = seen[order].reshape(-1, seen.shape[-1]).to(embeds.dtype)
        return embeds

    @torch.inference_mode()
    def _describe(self, frames: Sequence[Image], clips: Sequence[Clip]) -> list[Said]:
        embeds = self.prompts(frames, clips)
        mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=self.device)
        new: Tensor = self.model.generate(inputs_embeds=embeds, attention_mask=mask)  # (B, ≤max)
        return [self._said(tokens) for tokens in new.tolist()]

    def _said(self, tokens: list[int]) -> Said:
        end = next((i for i, token in enumerate(tokens) if token in self.stops), None)
        text = clean_caption(self.tokenizer.decode(tokens[:end], skip_special_tokens=True))
        return Said(text or NOTHING_SAID, cut=end is None)

    def _tokenise(self, folder: Path) -> Tensor:
        config = self.model.config
        if not self.tokenizer.chat_template:
            raise DataError(
                f"{folder}: its tokenizer has no chat template; copy chat_template.jinja from "
                f"where the weights come from"
            )
        tile = f"<img>{IMAGE_TOKEN * config.image_seq_length}</img>"
        message = {"role": "user", "content": self.prompt.replace("<image>", tile)}
        ids: Tensor = self.tokenizer.apply_chat_template(
            [message], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        wanted = FRAMES * config.image_seq_length
        if (found := int((ids == config.image_token_id).sum())) != wanted:
            raise DataError(
                f"{folder}: its tokenizer gives {found} image tokens for {FRAMES} frames, the "
                f"config expects {wanted}; `python -m sfn_train weights check {folder}` tells more"
            )
        return ids.to(self.device)


def _read_config(folder: Path) -> Any:
    """Its settings, once the folder is known to hold all of such a model, and no pickle."""
    if (kind := kind_of(folder)) is not Kind.INTERNVL:
        way = "give a folder of that kind"
        if kind is Kind.INTERNVL_REMOTE:
            way = f"make one of it: `{CONVERT} {folder} --out NEW`"
        raise DataError(f"{folder} is {kind}; captions need {Kind.INTERNVL}: {way}")
    config = build_config(read_json(folder / CONFIG), folder)
    shapes = {stored_name(name): entry.shape for name, entry in list_tensors(folder).items()}
    compare_shapes(shapes, drop_tied(expected_shapes(config, folder), shapes, config), folder)
    return config


def _stops(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end a caption: the model's own, and the end of its turn in the chat."""
    own = model.generation_config.eos_token_id
    if own is None:
        own = model.config.text_config.eos_token_id
    stops = [] if own is None else [own] if isinstance(own, int) else list(own)
    end = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    if isinstance(end, int) and end != tokenizer.unk_token_id and end not in stops:
        stops.append(end)
    if not stops:
        raise DataError(
            "neither generation_config.json nor the tokenizer names a token that ends an answer; "
            "copy generation_config.json from where the weights come from"
        )
    return stops
