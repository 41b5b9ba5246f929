"""The captioner `vlm`: a vision-language model in the bundle describes clips, without torch.

    see        frames -> vision -> hidden              each frame once, however many clips hold it
    describe   hidden -> projector -> image vectors, put into the prompt where it has image tokens
               prompt -> language, greedily -> tokens, until a stop or the cap -> text

The chat template was rendered at export; what remains is to put the prompt into it, and to
tokenise. Token ids are those of transformers' `generate` on the same weights.

Axes: F frames, B clips, T frames a clip, N patches, C width of the tower, L tokens of the prompt,
n vectors of a picture, D width of the language model.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from tokenizers import Tokenizer

from sfn_rt.backends.base import Array
from sfn_rt.backends.ort import OrtBackend
from sfn_rt.bundle import Bundle, VlmSettings, load_bundle
from sfn_rt.exceptions import BundleError, InputError
from sfn_rt.frames import Image
from sfn_rt.preprocess import preprocess
from sfn_rt.semantics.caption_text import NOTHING_SAID, clean_caption
from sfn_rt.semantics.captioner import Moment, Said
from sfn_rt.semantics.language import EXPORT_AGAIN, Embeddings, LanguageModel

BATCH = 8  # clips described at once: bounds memory, whatever is asked for
TILES = 4  # frames seen at once
KEPT = 32  # frames whose hidden states a describer remembers, 4 MB each at full size
MESSAGE, PICTURE = "{message}", "<image>"  # in the chat template; in the prompt


class Vlm:
    """Describes clips, greedily and in batches. The tower is opened when a frame is to be seen."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        variants: Mapping[str, str] | None = None,
        max_tokens: int | None = None,
    ) -> None:
        self.settings = settings = vlm_settings(bundle)
        self.max_tokens = check_cap(settings.max_tokens, max_tokens)
        self._bundle, self._threads, self._variants = bundle, threads, variants or {}
        self._tokenizer = load_tokenizer(bundle.path(settings.tokenizer))
        table = Embeddings(bundle.path(settings.embeddings), settings.embeddings_dtype)
        self.prompt_ids = np.array(tokenise_prompt(self._tokenizer, settings))  # (L,)
        self._places = np.flatnonzero(self.prompt_ids == settings.image_token)  # (T n,)
        self._check_prompt(table)
        self._embeddings = table
        self._backend = self._open("projector", "language")
        self._language = LanguageModel(self._backend, table, str(bundle.folder))
        self._vision: OrtBackend | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for backend in (self._backend, self._vision):
            if backend is not None:
                backend.__exit__()

    def see(self, images: Sequence[Image]) -> Array:
        """What the tower makes of each picture: (F, 1 + N, C)."""
        if not images:
            return np.empty((0, *self._hidden_shape), np.float32)
        if self._vision is None:
            self._vision = self._open("vision")
        seen = []
        for start in range(0, len(images), TILES):
            tiles = np.stack(
                [preprocess(image, self.settings.tile) for image in images[start : start + TILES]]
            )
            seen.append(self._vision.infer("vision", {"frame": tiles}, ["hidden"])["hidden"])
        return np.concatenate(seen)

    def describe(self, hidden: Sequence[Array]) -> list[Said]:
        """A caption of each clip of (T, 1 + N, C)."""
        said: list[Said] = []
        for start in range(0, len(hidden), BATCH):
            clips = hidden[start : start + BATCH]
            steps = zip(*self.stream(clips), strict=True)
            said += [self._said([token for token in clip if token is not None]) for clip in steps]
        return said

    def stream(self, hidden: Sequence[Array]) -> Iterator[tuple[int | None, ...]]:
        """The captions of all these clips at once, a token a clip and step.

        A stop is the last token of its clip; None follows it while other clips go on.
        """
        if not hidden:
            return iter(())
        return self._language.stream(self._prompts(hidden), self.settings.stops, self.max_tokens)

    def text(self, tokens: Sequence[int]) -> str:
        """What tokens say, as one clean line; may be empty."""
        return clean_caption(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    @property
    def _hidden_shape(self) -> tuple[Any, ...]:
        return self._backend.parts["projector"].inputs[0].shape[1:]

    def _said(self, tokens: Sequence[int]) -> Said:
        cut = tokens[-1] not in self.settings.stops
        text = self.text(tokens if cut else tokens[:-1])
        return Said(text or NOTHING_SAID, cut, tuple(tokens))

    def _prompts(self, hidden: Sequence[Array]) -> Array:
        """(B, L, D): the prompt's words, with each clip's own pictures in it."""
        wanted = (self.settings.frames, *self._hidden_shape)
        for clip in hidden:
            if clip.shape != wanted:
                raise InputError(
                    f"vlm: a clip must be {list(wanted)} of hidden states, got {list(clip.shape)}"
                )
        feeds = {"hidden": np.concatenate(hidden)}  # (B T, 1 + N, C)
        image = self._backend.infer("projector", feeds)["image"]  # (B T, n, D)
        words = self._embeddings[self.prompt_ids]  # (L, D)
        prompts = np.tile(words, (len(hidden), 1, 1))
        prompts[:, self._places] = image.reshape(len(hidden), -1, words.shape[-1])
        return prompts

    def _open(self, *parts: str) -> OrtBackend:
        """Open parts of the VLM; `vision` may be the model's own."""
        graphs = {}
        for part in parts:
            own = part in self.settings.parts
            graphs[part] = self._bundle.graph(part, self._variants.get(part), vlm=own)
        return OrtBackend(graphs, threads=self._threads)

    def _check_prompt(self, table: Embeddings) -> None:
        settings, place = self.settings, self._bundle.folder
        wanted = settings.frames * settings.tokens_per_frame
        if len(self._places) != wanted:
            raise BundleError(
                f"{place}: the VLM's prompt has {len(self._places)} image tokens, "
                f"{settings.frames} frames need {wanted}; {EXPORT_AGAIN}"
            )
        highest = max(int(self.prompt_ids.max()), *settings.stops)
        if highest >= table.shape[0]:
            raise BundleError(
                f"{place}: the VLM's tokenizer has a token {highest}, its embeddings have "
                f"{table.shape[0]} rows; {EXPORT_AGAIN}"
            )


class ClipDescriber:
    """Describes the moments that the lane asks about; a frame that clips share is seen once."""

    def __init__(self, vlm: Vlm) -> None:
        self._vlm = vlm
        self._seen: OrderedDict[bytes, Array] = OrderedDict()  # by content, latest use last

    def describe(self, moments: Sequence[Moment]) -> list[Said]:
        """A caption of each; what a moment brings along is not computed again."""
        alone = [moment.frames for moment in moments if moment.hidden is None]
        images = {key(frame.image): frame.image for frames in alone for frame in frames}
        fresh = [name for name in images if name not in self._seen]
        hidden = self._vlm.see([images[name] for name in fresh])
        self._seen.update(zip(fresh, hidden, strict=True))
        for name in images:
            self._seen.move_to_end(name)
        said = self._vlm.describe([self._clip(moment) for moment in moments])
        while len(self._seen) > KEPT:
            self._seen.popitem(last=False)
        return said

    def close(self) -> None:
        """Let go of the graphs."""
        self._vlm.__exit__()

    def _clip(self, moment: Moment) -> Array:
        if moment.hidden is not None:
            return moment.hidden
        return np.stack([self._seen[key(frame.image)] for frame in moment.frames])


def open_describer(
    bundle_folder: Path,
    threads: int | None = None,
    max_tokens: int | None = None,
    variants: Mapping[str, str] | None = None,
) -> ClipDescriber:
    """Open the VLM of a bundle that was verified already, as another process does for the lane."""
    bundle = load_bundle(bundle_folder, verify=False)
    return ClipDescriber(Vlm(bundle, threads=threads, variants=variants, max_tokens=max_tokens))


def vlm_settings(bundle: Bundle) -> VlmSettings:
    """What the manifest says of the VLM; raises where the bundle has none."""
    settings = bundle.manifest.vlm
    if settings is None:
        way = f"add one with `python -m sfn_export vlm WEIGHTS --bundle {bundle.folder}`"
        if bundle.manifest.semantics is None:
            way = f"a {bundle.manifest.system} model takes no captions"
        raise BundleError(f"{bundle.folder} has no VLM to make captions with; {way}")
    return settings


def check_cap(most: int, asked: int | None) -> int:
    """Tokens at which a caption is cut: the bundle's own, or fewer."""
    if asked is not None and not 1 <= asked <= most:
        raise InputError(
            f"--max-tokens must be from 1 to {most}, for which the VLM was exported, got {asked}"
        )
    return most if asked is None else asked


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json that neither pads nor cuts."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # `tokenizers` raises plain Exception
        raise BundleError(f"{path}: not a tokenizer file ({error}); {EXPORT_AGAIN}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def tokenise_prompt(tokenizer: Tokenizer, settings: VlmSettings) -> list[int]:
    """The whole prompt as the model reads it: the chat around the question behind its frames."""
    # Put in as text, not as a format: a question may hold any braces.
    message = settings.origin.prompt.replace(PICTURE, settings.picture)
    text = settings.chat.replace(MESSAGE, message)
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def key(image: Image) -> bytes:
    """Names a picture by its content; costs a thousandth of what seeing it does."""
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.digest()
