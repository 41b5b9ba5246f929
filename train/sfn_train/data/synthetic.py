"""A small video set made on the spot: a walkway under a camera, with labelled anomalies.

It lets a newcomer run the whole path without a download. Normal footage holds what defeats the
no-model baselines: joggers on the running track and a service cart that is the largest and
fastest thing in the picture (in its lane, always driving left), a waving flag, a swaying tree,
noise, and light that flickers. What is abnormal is abnormal for its place, direction, shape or
way of moving, and nearly never for moving much:

    cyclist          rides along the paving
    cart on path     the service cart, on the paving
    wrong way        the service cart in its lane, driving right
    lawn runner      runs straight across lawn, path, verge and lane
    in the lane      walks along the service lane
    fall             falls, lies, gets up and walks on
    fight            two people who stand together begin to fight
    bag              is put down, stays, and is picked up
    ladder           someone walks past carrying one

    root/training/videos/01.mp4 …   root/testing/videos/01.mp4 …
    root/frame_labels.npz    01 … : uint8 (T,), 1 where any pixel of the mask is set
    root/pixel_masks.npz     01 … : uint8 (T, H, ceil(W / 8)), packed bits of what is abnormal
    root/anomalies.json      what happens when, for people

The same seed gives the same pictures. Everything is drawn with numpy and OpenCV.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from sfn_train.data import synthetic_drawing as draw
from sfn_train.data.synthetic_drawing import Image, Polygon

FPS = 25
WALK, JOG, RIDE, DRIVE = 1.4, 3.4, 4.3, 5.2  # pixels a frame where `scale` is 1
LANE_Y = 224.0  # where the service cart's wheels are
POSES = 64  # of one double step
CART_EVERY = 150.0  # frames between two passages, on average

# What happens in each test video and when, as a share of its length: the moment the abnormal
# thing passes the middle of the picture, or for things that stand still the moment it begins.
# Spread so that neither the place in a video nor its middle tells much.
PLAN: tuple[tuple[tuple[str, float], ...], ...] = (
    (("cyclist", 0.3),),
    (("fall", 0.5),),
    (("lawn runner", 0.05), ("wrong way", 0.8)),
    (("ladder", -0.3),),
    (("cart on path", 0.16), ("fight", 0.65)),
    (("bag", 0.06), ("in the lane", 1.15)),
)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One thing in one frame: where its feet are, what to fill, and whether it is abnormal."""

    y: float
    polygons: list[Polygon]
    odd: bool = False


Actor = Callable[[float], Figure | None]  # frame number -> what is seen of it then


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything in one video."""

    n_frames: int
    actors: tuple[Actor, ...]
    gain: NDArray[np.float64]  # (T,), the light
    wind: float
    kinds: tuple[str, ...] = ()


def make_walkway(
    root: Path,
    *,
    seed: int = 0,
    n_train: int = 6,
    n_test: int = 6,
    train_frames: int = 250,
    test_frames: int = 200,
    size: tuple[int, int] = (240, 360),
) -> Path:
    """Write the set under `root` and return it. `size` is height and width, both even."""
    if size[0] % 2 or size[1] % 2 or min(size) < 16:
        raise ValueError(f"size must be two even numbers of at least 16 pixels, got {size}")
    width = size[1] * draw.HEIGHT / size[0]  # of the scene, in its own coordinates
    rng = np.random.default_rng([seed, 0])
    background = draw.ground(size, rng)
    leaves = _leaves(rng)
    noise = [rng.normal(0, 2.2, (*size, 3)).astype(np.float32) for _ in range(8)]

    labels: dict[str, NDArray[np.uint8]] = {}
    masks: dict[str, NDArray[np.uint8]] = {}
    story: dict[str, list[dict[str, str | int]]] = {}
    for split, part, count, n_frames in (
        (1, "training", n_train, train_frames),
        (2, "testing", n_test, test_frames),
    ):
        folder = root / part / "videos"
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            rng = np.random.default_rng([seed, split, number])
            plan = PLAN[number % len(PLAN)] if part == "testing" else ()
            scene = make_scene(rng, n_frames, width, plan)
            name = f"{number + 1:02d}"
            frames = render(scene, background, leaves, noise, rng)
            odd = _write(folder / f"{name}.mp4", frames, size)  # (T, H, W)
            if part == "testing":
                labels[name] = np.asarray(odd.any(axis=(1, 2)), np.uint8)
                masks[name] = np.packbits(odd, axis=-1)
                story[name] = _story(labels[name], scene.kinds)
    np.savez_compressed(root / "frame_labels.npz", **labels)  # type: ignore[arg-type]
    np.savez_compressed(root / "pixel_masks.npz", **masks)  # type: ignore[arg-type]
    (root / "anomalies.json").write_text(json.dumps(story, indent=1) + "\n")
    return root


def make_scene(
    rng: np.random.Generator,
    n_frames: int,
    width: float,
    plan: tuple[tuple[str, float], ...] = (),
) -> Scene:
    """Choose who passes when, and add what `plan` asks for."""
    walkers = 0.004 + 0.020 * rng.random()  # arrivals a frame: from nearly empty to a crowd
    actors: list[Actor] = [
        *_arrivals(rng, n_frames, width, walkers, _walker),
        *_arrivals(rng, n_frames, width, 0.006, _jogger),
    ]
    if rng.random() < 0.6:
        actors += _pair(rng, rng.uniform(40, width - 40), rng.uniform(120, 158))
    odd = [_ANOMALIES[kind](rng, at * n_frames, width) for kind, at in plan]
    in_lane = ("wrong way", "in the lane")
    busy = [at * n_frames for kind, at in plan if kind in in_lane]
    time = rng.uniform(-CART_EVERY, 0)
    while time < n_frames + 60:
        if all(abs(time - other) > 80 for other in busy):
            actors.append(_cart(rng, time, width, y=LANE_Y, facing=-1))
        time += CART_EVERY * rng.uniform(0.7, 1.3)
    return Scene(
        n_frames=n_frames,
        actors=(*actors, *(actor for group in odd for actor in group)),
        gain=_light(rng, n_frames),
        wind=float(rng.uniform(1.0, 3.0)),
        kinds=tuple(kind for kind, _ in plan),
    )


def render(
    scene: Scene,
    background: Image,
    leaves: NDArray[np.float64],
    noise: list[NDArray[np.float32]],
    rng: np.random.Generator,
) -> Iterator[tuple[Image, NDArray[np.uint8]]]:
    """Yield each frame (H, W, 3) and the mask (H, W) of what is abnormal in it."""
    factor = background.shape[0] / draw.HEIGHT
    start = rng.uniform(0, 1000)
    for t in range(scene.n_frames):
        image = background.copy()
        mask = np.zeros(image.shape[:2], np.uint8)
        draw.paint(image, draw.foliage(leaves, start + t, scene.wind), factor)
        draw.paint(image, draw.flag(start + t), factor)
        figures = [figure for actor in scene.actors if (figure := actor(t)) is not None]
        _cast_shadows(image, figures, factor)
        in_front = Figure(y=draw.POST_Y, polygons=draw.lamp_post())
        labelled = any(figure.odd for figure in figures)
        for figure in sorted([*figures, in_front], key=lambda figure: figure.y):
            draw.paint(image, figure.polygons, factor)
            if labelled:  # normal figures are painted too: what they hide is not seen
                draw.paint_mask(mask, figure.polygons, factor, int(figure.odd))
        grain = np.roll(noise[rng.integers(len(noise))], rng.integers(0, 1 << 16), axis=1)
        lit = image.astype(np.float32) * np.float32(scene.gain[t]) + grain
        yield np.clip(lit, 0, 255).astype(np.uint8), mask


def _cast_shadows(image: Image, figures: list[Figure], factor: float) -> None:
    dark = np.zeros(image.shape[:2], np.uint8)
    for figure in figures:
        draw.paint_mask(dark, draw.shadow(figure.polygons, figure.y), factor, 80)
    soft = cv2.GaussianBlur(dark, (5, 5), 0)
    left = cv2.cvtColor(255 - soft, cv2.COLOR_GRAY2RGB)
    cv2.multiply(image, left, image, 1 / 255)


def _write(
    path: Path, frames: Iterator[tuple[Image, NDArray[np.uint8]]], size: tuple[int, int]
) -> NDArray[np.bool_]:
    """Encode the frames and return their masks. One encoder thread: the same file every time."""
    masks = []
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        # x264's macroblock tree gives another file every time; without it they are all equal.
        exact = "mbtree=0:cpu-independent=1"
        stream.options = {"crf": "21", "preset": "veryfast", "x264-params": exact}
        for image, mask in frames:
            planes = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2YUV_I420), np.uint8)  # (1.5 H, W)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
            masks.append(mask > 0)
        container.mux(stream.encode(None))
    return np.stack(masks)


def _story(label: NDArray[np.uint8], kinds: tuple[str, ...]) -> list[dict[str, str | int]]:
    """Runs of abnormal frames with what they show, first to last."""
    edge = np.flatnonzero(np.diff(label, prepend=0, append=0))
    runs = [(int(start), int(end)) for start, end in zip(edge[::2], edge[1::2], strict=True)]
    named = kinds if len(kinds) == len(runs) else (" and ".join(kinds),) * len(runs)
    return [
        {"kind": kind, "start_frame": start, "end_frame": end - 1}
        for kind, (start, end) in zip(named, runs, strict=True)
    ]


def _leaves(rng: np.random.Generator) -> NDArray[np.float64]:
    angle, reach = rng.uniform(0, 2 * np.pi, 90), np.sqrt(rng.random(90))
    x, y = 59 + 27 * reach * np.cos(angle), 34 + 24 * reach * np.sin(angle)
    order = np.argsort(-y)  # the lower leaves first: those above catch the light
    shade = np.clip((60 - y) / 50 + rng.normal(0, 0.2, 90), 0, 1)
    return np.stack([x, y, rng.uniform(3.5, 7, 90), shade], axis=1)[order]


def _light(rng: np.random.Generator, n_frames: int) -> NDArray[np.float64]:
    """Clouds, mains flicker and now and then a correction by the camera: a factor a frame."""
    cloud, step = 0.0, 0.0
    gain = np.empty(n_frames)
    for t in range(n_frames):
        cloud = 0.98 * cloud + 0.004 * rng.standard_normal()
        if rng.random() < 0.04:
            step = rng.uniform(-0.035, 0.035)
        gain[t] = 1 + np.clip(cloud, -0.04, 0.04) + step + 0.006 * rng.standard_normal()
    return gain


def _arrivals(
    rng: np.random.Generator,
    n_frames: int,
    width: float,
    rate: float,
    make: Callable[[np.random.Generator, float, float], Actor],
) -> list[Actor]:
    """People who pass the middle at random times, those already on their way at the start too."""
    before = width  # frames: the slowest takes that long from the edge to the middle
    count = rng.poisson(rate * (n_frames + 2 * before))
    return [make(rng, rng.uniform(-before, n_frames + before), width) for _ in range(count)]


def _travel(at: float, width: float, y: float, speed: float) -> Callable[[float], float | None]:
    """x at each frame of something passing the middle of the picture at frame `at`."""
    margin = 90 * draw.scale(y)

    def x(t: float) -> float | None:
        place = width / 2 + speed * draw.scale(y) * (t - at)
        return place if -margin < place < width + margin else None

    return x


def _on_foot(
    rng: np.random.Generator,
    at: float,
    width: float,
    *,
    y: float,
    speed: float,
    swing: float,
    lean: float,
    odd: bool = False,
    carries: Callable[[], list[Polygon]] | None = None,
) -> Actor:
    """Someone who walks or runs through. The gait follows the distance, so feet do not slide."""
    looks = draw.random_looks(rng)
    facing = 1 if rng.random() < 0.5 else -1
    x = _travel(at, width, y, facing * speed)
    size = draw.PERSON * draw.scale(y) * looks.tall
    step = 2 * np.pi * speed / draw.PERSON / (4 * 0.5 * np.sin(swing) * (1 + 0.6 * (swing > 0.7)))
    start, drift = rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi)

    def figure(t: float) -> Figure | None:
        place = x(t)
        if place is None:
            return None
        feet = y + 1.5 * np.sin(t * 0.03 + drift)
        pose = int((start + step * t) / (2 * np.pi) * POSES) % POSES
        body = draw.person(looks, pose * 2 * np.pi / POSES, swing=swing, lean=lean)
        if carries is not None:
            body = [*body, *carries()]
        return Figure(y=feet, polygons=draw.placed(body, place, feet, size, facing=facing), odd=odd)

    return figure


def _walker(rng: np.random.Generator, at: float, width: float) -> Actor:
    speed = WALK * rng.uniform(0.75, 1.25)
    return _on_foot(rng, at, width, y=rng.uniform(114, 160), speed=speed, swing=0.5, lean=0.05)


def _jogger(rng: np.random.Generator, at: float, width: float) -> Actor:
    speed = JOG * rng.uniform(0.9, 1.15)
    return _on_foot(rng, at, width, y=rng.uniform(98, 104), speed=speed, swing=0.85, lean=0.22)


def _cart(
    rng: np.random.Generator, at: float, width: float, *, y: float, facing: int, odd: bool = False
) -> Actor:
    driver = draw.random_looks(rng)
    speed = DRIVE * rng.uniform(0.92, 1.08)
    x = _travel(at, width, y, facing * speed)
    size = draw.PERSON * draw.scale(y) * 1.02

    def figure(t: float) -> Figure | None:
        place = x(t)
        if place is None:
            return None
        body = draw.cart(driver, speed * t / draw.PERSON)
        return Figure(y=y, polygons=draw.placed(body, place, y, size, facing=facing), odd=odd)

    return figure


def _pair(
    rng: np.random.Generator, x: float, y: float, fight: tuple[float, float] | None = None
) -> list[Actor]:
    """Two people who stand and talk, and between the two frames of `fight` do not talk."""
    size = draw.PERSON * draw.scale(y)
    rates = rng.uniform(0.35, 0.95, 6)  # radians a frame: two to four blows a second
    phases = rng.uniform(0, 2 * np.pi, 6)

    def one(side: int) -> Actor:
        looks = draw.random_looks(rng)

        def figure(t: float) -> Figure:
            apart, arms, lean = 0.3, (0.25, 0.2 + 0.2 * np.sin(t * 0.07 + side)), 0.02
            odd = fight is not None and fight[0] <= t < fight[1]
            jolt = np.sin(rates * t + phases)  # (6,)
            if odd:
                mine = jolt[:3] if side > 0 else jolt[3:]
                apart = 0.24 + 0.05 * mine[0]
                arms = (1.5 + 0.9 * mine[1], 1.2 + 1.1 * mine[2])
                lean = 0.25 + 0.3 * mine[1]
            place = x - side * apart * size + (0.12 * size * (jolt[0] + jolt[3]) if odd else 0)
            swing = 0.35 * abs(jolt[1]) if odd else 0.04
            body = draw.person(looks, jolt[2] * 1.5, swing=swing, lean=lean, arms=arms)
            polygons = draw.placed(body, place, y, size, facing=side)
            return Figure(y=y + 0.1 * side, polygons=polygons, odd=odd)

        return figure

    return [one(1), one(-1)]


def _cyclist(rng: np.random.Generator, at: float, width: float) -> list[Actor]:
    rider, y = draw.random_looks(rng), rng.uniform(125, 150)
    facing = 1 if rng.random() < 0.5 else -1
    x = _travel(at, width, y, facing * RIDE)

    def figure(t: float) -> Figure | None:
        place = x(t)
        if place is None:
            return None
        body = draw.bicycle(rider, RIDE * t / draw.PERSON)
        size = draw.PERSON * draw.scale(y) * 1.05
        return Figure(y=y, polygons=draw.placed(body, place, y, size, facing=facing), odd=True)

    return [figure]


def _cart_on_path(rng: np.random.Generator, at: float, width: float) -> list[Actor]:
    facing = 1 if rng.random() < 0.5 else -1
    return [_cart(rng, at, width, y=rng.uniform(130, 150), facing=facing, odd=True)]


def _wrong_way(rng: np.random.Generator, at: float, width: float) -> list[Actor]:
    return [_cart(rng, at, width, y=LANE_Y, facing=1, odd=True)]


def _in_the_lane(rng: np.random.Generator, at: float, width: float) -> list[Actor]:
    return [_on_foot(rng, at, width, y=218, speed=WALK, swing=0.5, lean=0.05, odd=True)]


def _ladder(rng: np.random.Generator, at: float, width: float) -> list[Actor]:
    y = rng.uniform(125, 150)
    gait = {"speed": WALK, "swing": 0.5, "lean": 0.05}
    return [_on_foot(rng, at, width, y=y, **gait, odd=True, carries=draw.ladder)]


def _lawn_runner(rng: np.random.Generator, at: float, width: float) -> list[Actor]:
    """Runs straight across everything: far lawn, track, paving, verge, lane, out of the picture."""
    looks, phase = draw.random_looks(rng), rng.uniform(0, 2 * np.pi)
    facing = 1 if rng.random() < 0.5 else -1
    edge = -15.0 if facing > 0 else width + 15

    def figure(t: float) -> Figure | None:
        # Steady on the ground: ever faster in the picture the nearer it comes.
        y = 108 * np.exp(0.016 * (t - at)) - 30
        if t < at or y > 300:
            return None
        size = draw.PERSON * draw.scale(y) * looks.tall
        body = draw.person(looks, phase + t * 0.42, swing=0.85, lean=0.25)
        x = edge + facing * 1.25 * (y - 78)
        return Figure(y=y, polygons=draw.placed(body, x, y, size, facing=facing), odd=True)

    return [figure]


def _fall(rng: np.random.Generator, at: float, width: float) -> list[Actor]:
    """Walks, falls within half a second, lies for three, gets up and walks on."""
    looks, y = draw.random_looks(rng), rng.uniform(125, 152)
    facing = 1 if rng.random() < 0.5 else -1
    x_there, speed = rng.uniform(0.4, 0.6) * width, WALK * draw.scale(y)
    size = draw.PERSON * draw.scale(y)
    down, lying, up = at + 12, at + 85, at + 105

    def figure(t: float) -> Figure | None:
        walked = min(t - at, 0) + max(t - up, 0)
        place = x_there + facing * speed * walked
        if not -60 < place < width + 60:
            return None
        lies = float(np.interp(t, [at, down, lying, up], [0, 1, 1, 0]))
        stirs = 0.2 * np.sin(t * 0.3) * lies
        body = draw.person(
            looks,
            walked * 0.11,
            swing=0.5 * (1 - lies) + abs(stirs) * 0.5,
            lean=0.05 + 0.3 * lies * (lies < 1),
            arms=(1.4 * lies + stirs, 2.0 * lies - stirs) if lies else None,
        )
        tilt = facing * lies * np.pi / 2
        polygons = draw.placed(body, place, y - 3 * lies, size, facing=facing, tilt=tilt)
        return Figure(y=y, polygons=polygons, odd=lies > 0)

    return [figure]


def _fight(rng: np.random.Generator, at: float, width: float) -> list[Actor]:
    return _pair(rng, rng.uniform(0.3, 0.6) * width, rng.uniform(130, 155), (at, at + 75))


def _bag(rng: np.random.Generator, at: float, width: float) -> list[Actor]:
    """One walker passes and leaves a bag; another picks it up three and a half seconds later."""
    x_there, y, taken = rng.uniform(0.3, 0.6) * width, rng.uniform(130, 150), at + 88
    size = draw.PERSON * draw.scale(y)
    walkers = [
        _on_foot(rng, when, 2 * x_there, y=y - 2, speed=WALK, swing=0.5, lean=0.05)
        for when in (at, taken)
    ]

    def left(t: float) -> Figure | None:
        if not at <= t < taken:
            return None
        polygons = draw.placed(draw.bag(), x_there, y, size)
        return Figure(y=y, polygons=polygons, odd=True)

    return [*walkers, left]


_ANOMALIES: dict[str, Callable[[np.random.Generator, float, float], list[Actor]]] = {
    "cyclist": _cyclist,
    "cart on path": _cart_on_path,
    "wrong way": _wrong_way,
    "lawn runner": _lawn_runner,
    "in the lane": _in_the_lane,
    "fall": _fall,
    "fight": _fight,
    "bag": _bag,
    "ladder": _ladder,
}
