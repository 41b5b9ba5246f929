"""The captioner in a bundle: it ends where it should, sees a frame once, and refuses what is off.

That its tokens are transformers' is tests/parity/test_vlm_tokens.py.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from sfn_rt.bundle import Bundle, VlmSettings, load_bundle
from sfn_rt.exceptions import BackendError, BundleError, InputError
from sfn_rt.frames import Frame
from sfn_rt.semantics.caption_text import NOTHING_SAID
from sfn_rt.semantics.captioner import Moment, Said
from sfn_rt.semantics.language import Embeddings
from sfn_rt.semantics.vlm import ClipDescriber, Vlm, open_describer

MOST = 24
Array = NDArray[Any]


@pytest.fixture(scope="module")
def bundle(vlm_bundle: Path) -> Bundle:
    return load_bundle(vlm_bundle)


@pytest.fixture(scope="module")
def vlm(bundle: Bundle) -> Iterator[Vlm]:
    with Vlm(bundle, threads=1, max_tokens=MOST) as opened:
        yield opened


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    random = np.random.default_rng(5)
    shape = (30, 50, 3)
    return [Frame(i, i / 25, random.integers(0, 256, shape, dtype=np.uint8)) for i in range(7)]


@pytest.fixture(scope="module")
def clips(vlm: Vlm, frames: list[Frame]) -> list[Array]:
    hidden = vlm.see([frame.image for frame in frames])
    return [hidden[i : i + 4] for i in range(4)]


@pytest.fixture(scope="module")
def said(vlm: Vlm, clips: list[Array]) -> list[Said]:
    """All cut: random weights seldom stop by themselves."""
    captions = vlm.describe(clips)
    assert all(one.cut and len(one.tokens) == MOST for one in captions)
    return captions


def changed(bundle: Bundle, **settings: Any) -> Bundle:
    """The bundle with other settings of its VLM, as another export would have written."""
    vlm = replace(settings_of(bundle), **settings)
    return replace(bundle, manifest=replace(bundle.manifest, vlm=vlm))


def settings_of(bundle: Bundle) -> VlmSettings:
    assert bundle.manifest.vlm is not None
    return bundle.manifest.vlm


# --- where a caption ends -----------------------------------------------------------------------


def test_a_clip_that_ends_leaves_the_batch_and_changes_no_other(
    bundle: Bundle, clips: list[Array], said: list[Said]
) -> None:
    rows = [one.tokens for one in said]
    stop = rows[0][5]  # from now on this token ends a caption
    ends = [row.index(stop) if stop in row else None for row in rows]
    assert None in ends  # another clip goes on, or nothing would be shown
    with Vlm(changed(bundle, stops=(stop,)), threads=1, max_tokens=MOST) as vlm:
        stopped = vlm.describe(clips)
        steps = list(vlm.stream(clips))
    for row, end, one in zip(rows, ends, stopped, strict=True):
        assert one.tokens == (row if end is None else row[: end + 1])
        assert one.cut == (end is None)
        assert one.text == vlm.text(row[:end])  # without its stop
    assert len(steps) == MOST
    for told, one in zip(zip(*steps, strict=True), stopped, strict=True):
        assert told == (*one.tokens, *[None] * (MOST - len(one.tokens)))


def test_a_stream_is_over_when_every_clip_is(
    bundle: Bundle, clips: list[Array], said: list[Said]
) -> None:
    stops = tuple({one.tokens[2] for one in said})
    with Vlm(changed(bundle, stops=stops), threads=1, max_tokens=MOST) as vlm:
        assert len(list(vlm.stream(clips))) <= 3


def test_a_model_that_ends_at_once_has_said_nothing(
    bundle: Bundle, clips: list[Array], said: list[Said]
) -> None:
    first = said[0].tokens[0]
    with Vlm(changed(bundle, stops=(first,)), threads=1, max_tokens=MOST) as vlm:
        assert vlm.describe(clips[:1]) == [Said(NOTHING_SAID, False, (first,))]


def test_the_cap_is_the_bundles_or_less(bundle: Bundle, clips: list[Array]) -> None:
    most = settings_of(bundle).max_tokens
    with Vlm(bundle, threads=1) as vlm:
        assert vlm.max_tokens == most
    with Vlm(bundle, threads=1, max_tokens=1) as vlm:
        (one,) = vlm.describe(clips[:1])
    assert one.cut
    assert len(one.tokens) == 1
    for wrong in (0, -3, most + 1):
        with pytest.raises(InputError, match=rf"--max-tokens must be from 1 to {most}.*{wrong}$"):
            Vlm(bundle, max_tokens=wrong)


def test_no_clips_and_no_pictures_are_no_work(vlm: Vlm) -> None:
    assert vlm.describe([]) == []
    assert list(vlm.stream([])) == []
    assert vlm.see([]).shape == (0, 17, 64)


def test_more_clips_than_a_batch_are_told_in_order(
    vlm: Vlm, clips: list[Array], said: list[Said]
) -> None:
    assert vlm.describe([*clips, *clips, *clips]) == said * 3


def test_a_clip_of_another_length_is_refused(vlm: Vlm, clips: list[Array]) -> None:
    with pytest.raises(InputError, match=r"must be \[4, 17, 64\] of hidden states, got \[3, 17"):
        vlm.describe([clips[0], clips[1][:3]])


# --- for the lane -------------------------------------------------------------------------------


def test_a_frame_that_clips_share_is_seen_once(
    bundle: Bundle, frames: list[Frame], said: list[Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    see = Vlm.see

    def counted(self: Vlm, images: Any) -> Array:
        seen.append(len(images))
        return see(self, images)

    monkeypatch.setattr(Vlm, "see", counted)
    describer = open_describer(bundle.folder, 1, MOST)
    moments = [Moment(i + 4, 0.0, frames[i : i + 4], ()) for i in range(4)]
    assert describer.describe(moments[:2]) == said[:2]
    assert describer.describe(moments[2:]) == said[2:]
    assert describer.describe(moments[:1]) == said[:1]
    assert seen == [5, 2, 0]
    # The same index in another video is another frame: content names it.
    other = [Frame(frame.index, frame.time_s, 255 - frame.image) for frame in frames[:4]]
    assert describer.describe([Moment(4, 0.0, other, ())]) != said[:1]
    assert seen[-1] == 4
    describer.close()


def test_what_the_models_own_tower_saw_is_not_seen_again(
    bundle: Bundle, frames: list[Frame], clips: list[Array], said: list[Said]
) -> None:
    with Vlm(bundle, threads=1, max_tokens=MOST) as vlm:
        moments = [Moment(i + 4, 0.0, frames[i : i + 4], (), clips[i]) for i in range(4)]
        assert ClipDescriber(vlm).describe(moments) == said
        assert vlm._vision is None  # a gigabyte at full size that nobody needed


def test_it_runs_where_there_is_no_torch(bundle: Bundle, said: list[Said]) -> None:
    script = """
import sys
from importlib.abc import MetaPathFinder
class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "onnx", "jinja2", "sfn_train"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from pathlib import Path
import numpy as np
from sfn_rt.semantics.vlm import open_describer
from sfn_rt.frames import Frame
from sfn_rt.semantics.captioner import Moment
random = np.random.default_rng(5)
frames = [Frame(i, 0, random.integers(0, 256, (30, 50, 3), dtype=np.uint8)) for i in range(7)]
(said,) = open_describer(Path(sys.argv[1]), 1, 24).describe([Moment(4, 0.0, frames[:4], ())])
print(*said.tokens)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(bundle.folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert tuple(map(int, done.stdout.split())) == said[0].tokens


# --- graphs of another maker --------------------------------------------------------------------


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Bundle:
    return Bundle(Path(shutil.copytree(bundle.folder, tmp_path / "copy")), bundle.manifest)


def with_variant(bundle: Bundle, graph: onnx.ModelProto) -> Bundle:
    onnx.save(graph, bundle.path("vlm/other.onnx"))
    parts = dict(settings_of(bundle).parts)
    files = {**parts["language"].files, "other": "vlm/other.onnx"}
    parts["language"] = replace(parts["language"], files=files)
    return changed(bundle, parts=parts)


def test_what_a_graph_declares_is_what_it_is_fed(
    copy: Bundle, clips: list[Array], said: list[Said]
) -> None:
    """A mask, positions and a cache in half precision, as onnxruntime-genai's graphs have them."""
    graph = onnx.load(copy.path("vlm/language.onnx"))
    for name, kind, shape in (
        ("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"]),
        ("position_ids", TensorProto.INT32, ["batch_size", "sequence_length"]),
    ):
        graph.graph.input.append(helper.make_tensor_value_info(name, kind, shape))
    # The mask is all ones and the last position is one less: logits times their quotient, 1.
    nodes = [
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["position_ids"], ["place"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["mask"], ["total"], keepdims=0),
        helper.make_node("ReduceMax", ["place"], ["last"], keepdims=0),
        helper.make_node("Shape", ["attention_mask"], ["rows"], start=0, end=1),
        helper.make_node("Cast", ["rows"], ["n"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["total", "n"], ["each"]),
        helper.make_node("Sub", ["each", "last"], ["one"]),
        helper.make_node("Mul", ["plain", "one"], ["logits"]),
    ]
    for node in graph.graph.node:
        node.output[:] = ["plain" if name == "logits" else name for name in node.output]
    graph.graph.node.extend(nodes)
    for value in graph.graph.input:
        if value.name.startswith("past_key_values.0"):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
            value.type.tensor_type.shape.dim[2].dim_param = "past_sequence_length"
            cast = helper.make_node(
                "Cast", [value.name], [f"{value.name}.wide"], to=TensorProto.FLOAT
            )
            for node in graph.graph.node:
                node.input[:] = [
                    f"{value.name}.wide" if name == value.name else name for name in node.input
                ]
            graph.graph.node.insert(0, cast)
    for value in graph.graph.output:
        if value.name.startswith("present.0"):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
            for node in graph.graph.node:
                node.output[:] = [
                    f"{value.name}.wide" if name == value.name else name for name in node.output
                ]
                node.input[:] = [
                    f"{value.name}.wide" if name == value.name else name for name in node.input
                ]
            graph.graph.node.append(
                helper.make_node(
                    "Cast", [f"{value.name}.wide"], [value.name], to=TensorProto.FLOAT16
                )
            )
    onnx.checker.check_model(graph)
    other = with_variant(copy, graph)
    with Vlm(other, threads=1, variants={"language": "other"}, max_tokens=8) as vlm:
        halved = vlm.describe(clips)
    assert [one.tokens for one in halved] == [one.tokens[:8] for one in said]


def test_a_graph_that_asks_for_something_else_is_refused(copy: Bundle) -> None:
    graph = onnx.load(copy.path("vlm/language.onnx"))
    graph.graph.input.append(helper.make_tensor_value_info("seqlens", TensorProto.INT64, [1]))
    with pytest.raises(BundleError, match="the part language asks for 'seqlens'; export"):
        Vlm(with_variant(copy, graph), variants={"language": "other"})


def test_logits_that_are_no_numbers_are_no_caption(copy: Bundle, clips: list[Array]) -> None:
    table = np.load(copy.path("vlm/embeddings.npy"))
    table[:, 0] = np.nan
    np.save(copy.path("vlm/embeddings.npy"), table)
    with Vlm(copy, threads=1) as vlm, pytest.raises(BackendError, match="are no numbers"):
        vlm.describe(clips[:1])


# --- a bundle that is not right -----------------------------------------------------------------


def test_a_bundle_without_a_vlm_says_how_to_add_one(tiny_bundle: Path, dual_bundle: Path) -> None:
    with pytest.raises(BundleError, match="no VLM to make captions with; add one with `python -m"):
        open_describer(tiny_bundle)
    with pytest.raises(BundleError, match="a dual-memory model takes no captions"):
        open_describer(dual_bundle)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_token": 3}, "the VLM's prompt has 0 image tokens, 4 frames need 16"),
        ({"picture": "<img></img>"}, "has 0 image tokens"),
        ({"stops": (99_999,)}, "has a token 99999, its embeddings have 329 rows"),
    ],
)
def test_settings_that_contradict_the_files(
    bundle: Bundle, settings: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        Vlm(changed(bundle, **settings))


def test_embeddings_of_another_model(copy: Bundle) -> None:
    path = copy.path("vlm/embeddings.npy")
    table = np.load(path)
    np.save(path, table[:100])
    with pytest.raises(BundleError, match="its embeddings have 100 rows"):
        Vlm(copy)
    np.save(path, table[:, :40])
    with pytest.raises(BundleError, match="takes vectors of 48 numbers, the embeddings have 40"):
        Vlm(copy)
    np.save(path, table.astype(np.float64))
    with pytest.raises(BundleError, match=r"must be float32\[vocabulary, width\], got float64"):
        Vlm(copy)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(BundleError, match="not a plain array"):
        Vlm(copy)


def test_a_damaged_tokenizer(copy: Bundle) -> None:
    copy.path("vlm/tokenizer.json").write_text("{")
    with pytest.raises(BundleError, match="not a tokenizer file"):
        Vlm(copy)


def test_embeddings_in_bfloat16_are_exact(tmp_path: Path) -> None:
    import torch

    table = torch.randn(9, 5).bfloat16()
    np.save(tmp_path / "rows.npy", table.view(torch.int16).numpy().view(np.uint16))
    rows = Embeddings(tmp_path / "rows.npy", "bfloat16")
    ids = np.array([[3, 3], [8, 0]])
    assert rows.shape == (9, 5)
    assert rows[ids].dtype == np.float32
    np.testing.assert_array_equal(rows[ids], table.float().numpy()[ids])
    with pytest.raises(BundleError, match=r"must be float32\[vocabulary"):
        Embeddings(tmp_path / "rows.npy", "float32")
