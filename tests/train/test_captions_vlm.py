"""The VLM says what transformers' own generate says of each clip alone, in batches and cut."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sfn_rt.exceptions import DataError
from sfn_rt.preprocess import Preprocessing, preprocess
from sfn_rt.semantics.caption_text import clean_caption
from sfn_train.captions.make import OneProcess
from sfn_train.captions.units import Unit
from sfn_train.captions.vlm import FRAMES, Said, Vlm, model_sha256, read_tile
from tiny_weights import make_bert, make_internvl, make_remote_internvl

N_CLIPS, MAX_TOKENS = 6, 24
CLIPS = [tuple(range(i, i + FRAMES)) for i in range(N_CLIPS)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_internvl(tmp_path_factory.mktemp("vlm"))


@pytest.fixture
def copy(weights: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(weights, tmp_path / "copy"))


@pytest.fixture(scope="module")
def vlm(weights: Path) -> Vlm:
    return Vlm(weights, max_tokens=MAX_TOKENS, device="cpu")


@pytest.fixture(scope="module")
def frames() -> list[NDArray[np.uint8]]:
    random = np.random.default_rng(1)
    shape = (40, 70, 3)
    return [random.integers(0, 256, shape, dtype=np.uint8) for _ in range(N_CLIPS + FRAMES - 1)]


@pytest.fixture(scope="module")
def alone(weights: Path, frames: list[NDArray[np.uint8]]) -> list[list[int]]:
    """New tokens of each clip by transformers' generate, given ids and pictures one clip a time."""
    from transformers import AutoTokenizer, InternVLForConditionalGeneration

    model: Any = InternVLForConditionalGeneration.from_pretrained(weights, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(weights)
    tile = f"<img>{'<IMG_CONTEXT>' * 4}</img>"
    prompt = (
        "<|im_start|>user\n"
        f"Frame1: {tile}\nFrame2: {tile}\nFrame3: {tile}\nFrame4: {tile}\n"
        "Describe the scene in the video segment, what objects are present, and what is each "
        "person doing?<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    spec = Preprocessing(height=56, width=56, resize="bicubic")
    said = []
    for clip in CLIPS:
        pixels = torch.from_numpy(np.stack([preprocess(frames[i], spec) for i in clip]))
        new = model.eval().generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels,
            do_sample=False,
            max_new_tokens=MAX_TOKENS,
        )
        said.append(new[0, ids.shape[1] :].tolist())
    return said


def texts(weights: Path, tokens: list[list[int]]) -> list[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights)
    return [clean_caption(tokenizer.decode(row, skip_special_tokens=True)) for row in tokens]


@pytest.mark.parametrize("batch", [1, 4, N_CLIPS])
def test_captions_are_what_generate_says_of_each_clip_alone(
    vlm: Vlm,
    weights: Path,
    frames: list[NDArray[np.uint8]],
    alone: list[list[int]],
    batch: int,
) -> None:
    said: list[Said] = []
    for start in range(0, N_CLIPS, batch):
        said += vlm.caption(frames, CLIPS[start : start + batch])
    expected = texts(weights, alone)
    assert len({*expected}) == N_CLIPS  # or equality would say nothing
    assert [one.text for one in said] == expected


def test_a_caption_that_reaches_the_cap_is_cut_and_one_that_ends_is_not(
    copy: Path, frames: list[NDArray[np.uint8]], alone: list[list[int]]
) -> None:
    cut = Vlm(copy, max_tokens=MAX_TOKENS, device="cpu").caption(frames, CLIPS)
    assert all(one.cut for one in cut)
    stop = alone[0][10]  # from now on this token ends a caption
    settings = json.loads((copy / "generation_config.json").read_text())
    (copy / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [stop]}))
    said = Vlm(copy, max_tokens=MAX_TOKENS, device="cpu").caption(frames, CLIPS)
    ends = [row.index(stop) if stop in row else None for row in alone]
    assert ends[0] is not None
    assert [one.cut for one in said] == [end is None for end in ends]
    spoken = texts(copy, [row[:end] for row, end in zip(alone, ends, strict=True)])
    assert [one.text for one in said] == [text or "No description." for text in spoken]


def test_a_caption_is_one_line_that_steers_no_terminal(vlm: Vlm) -> None:
    tokenizer = vlm.tokenizer
    said = [
        vlm._said(tokenizer(text)["input_ids"]) for text in (" \x1b[2J a\r\nman\u202e ", "\x1b[0m")
    ]
    assert [one.text for one in said] == ["a man", "No description."]


def test_captions_are_greedy_whatever_the_folder_asks_for(
    vlm: Vlm, copy: Path, frames: list[NDArray[np.uint8]]
) -> None:
    settings = json.loads((copy / "generation_config.json").read_text())
    settings |= {"do_sample": True, "temperature": 5.0, "repetition_penalty": 1.8, "top_k": 3}
    (copy / "generation_config.json").write_text(json.dumps(settings))
    own = Vlm(copy, max_tokens=MAX_TOKENS, device="cpu")
    assert own.caption(frames, CLIPS) == vlm.caption(frames, CLIPS)
    assert model_sha256(copy) != model_sha256(Path(vlm.folder))


def test_a_frame_is_one_tile_of_the_size_that_the_config_states(weights: Path) -> None:
    assert read_tile(weights) == Preprocessing(height=56, width=56, resize="bicubic")


def test_more_clips_than_memory_holds_are_described_in_parts_and_alike(
    vlm: Vlm, frames: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, describe = vlm.caption(frames, CLIPS), vlm._describe

    def small_gpu(frames: Any, clips: Any) -> list[Said]:
        if len(clips) > 2:
            raise torch.OutOfMemoryError("made up: room for two clips")
        return describe(frames, clips)

    monkeypatch.setattr(vlm, "_describe", small_gpu)
    monkeypatch.setattr(vlm, "most", None)
    told: list[str] = []
    unit = Unit(0, tuple(range(N_CLIPS)), tuple(frames), tuple(CLIPS))
    first, second = OneProcess(vlm, told.append).run(iter([unit, unit]))
    assert first[1] == second[1] == whole
    assert told == ["note: out of GPU memory; going on with 2 clips at a time: --batch 2 fits"]


def test_one_clip_that_does_not_fit_ends_the_run(
    vlm: Vlm, frames: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_gpu(frames: Any, clips: Any) -> list[Said]:
        raise torch.OutOfMemoryError("made up: no room")

    monkeypatch.setattr(vlm, "_describe", no_gpu)
    monkeypatch.setattr(vlm, "most", None)
    with pytest.raises(DataError, match="does not hold one clip at 24 tokens; lower --max-tokens"):
        vlm.caption(frames, CLIPS)


def test_other_weights_are_refused_by_name(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(DataError, match=r"is InternVL's own layout.*weights convert .*--out NEW"):
        Vlm(make_remote_internvl(tmp_path / "remote"))
    with pytest.raises(DataError, match=r"is BERT.*captions need InternVL, transformers' native"):
        Vlm(make_bert(tmp_path / "bert"))
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["hidden_size"] = 64
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"but its config\.json makes it"):
        Vlm(copy)


def test_a_tokenizer_without_chat_template_is_refused(copy: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(DataError, match=r"no chat template; copy chat_template\.jinja"):
        Vlm(copy, device="cpu")
