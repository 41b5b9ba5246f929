"""How the synthetic walkway looks: its ground, and the people and vehicles on it.

Everything that moves is a list of filled polygons with a colour, so one list draws the picture,
the shadow on the ground and the pixel mask. Coordinates are those of a picture 240 high, x to
the right and y down, whatever the size it is drawn at. A figure is built standing on (0, 0) in
units of a person's height and then placed.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]  # (n, 2), x and y
Colour = tuple[int, int, int]  # RGB
Polygon = tuple[Points, Colour]
Image = NDArray[np.uint8]  # (H, W, 3) RGB

HEIGHT = 240  # of the coordinates everything here is given in
PERSON = 46.0  # pixels high where `scale` is 1

# From far to near, the y where each strip of ground begins.
LAWN, TRACK, PAVING, VERGE, LANE = 62.0, 92.0, 107.0, 165.0, 188.0
POST_X, POST_Y = 252.0, 176.0  # the lamp post, between paving and lane

_SUBPIXEL = 4  # bits: movement of less than a pixel a frame must show
_CIRCLE = np.array([[np.cos(a), np.sin(a)] for a in np.linspace(0, 2 * np.pi, 14)[:-1]])
_CAP = np.array([[np.cos(a), np.sin(a)] for a in np.linspace(-np.pi / 2, np.pi / 2, 5)])


def scale(y: float) -> float:
    """How large a thing appears whose feet are at y: the camera looks down a slope."""
    return (y + 30.0) / 190.0


@dataclass(frozen=True, kw_only=True)
class Looks:
    """What one person wears, and how tall they are compared with others."""

    skin: Colour
    hair: Colour
    top: Colour
    legs: Colour
    tall: float = 1.0


def random_looks(rng: np.random.Generator) -> Looks:
    """Someone in everyday clothes."""

    def pick(colours: Sequence[Colour], spread: int) -> Colour:
        base = np.array(colours[int(rng.integers(len(colours)))])
        red, green, blue = np.clip(base + rng.integers(-spread, spread + 1, 3), 0, 255)
        return int(red), int(green), int(blue)

    tops = [(54, 70, 120), (40, 42, 48), (226, 224, 218), (120, 44, 44), (92, 96, 100)]
    tops += [(62, 92, 74), (160, 140, 100), (70, 110, 150)]
    legs = [(36, 42, 66), (30, 30, 32), (86, 78, 66), (58, 62, 70)]
    skins = [(224, 184, 156), (190, 140, 108), (130, 90, 66), (92, 62, 46)]
    hairs = [(30, 24, 20), (80, 54, 32), (150, 118, 72), (120, 118, 116)]
    return Looks(
        skin=pick(skins, 8),
        hair=pick(hairs, 8),
        top=pick(tops, 14),
        legs=pick(legs, 10),
        tall=float(rng.uniform(0.92, 1.08)),
    )


def disc(x: float, y: float, radius: float, colour: Colour) -> Polygon:
    return _CIRCLE * radius + np.array([x, y]), colour


def ring(x: float, y: float, radius: float, width: float, colour: Colour) -> Polygon:
    closed = np.vstack([_CIRCLE, _CIRCLE[:1]])
    outline = np.vstack([closed * radius, closed[::-1] * (radius - width)])
    return outline + np.array([x, y]), colour


def limb(start: Points, end: Points, width: float, colour: Colour) -> Polygon:
    """A stroke with round ends."""
    dx, dy = float(end[0] - start[0]), float(end[1] - start[1])
    half = width / 2 / (math.hypot(dx, dy) + 1e-9)
    cap = _CAP @ np.array([[dx * half, dy * half], [-dy * half, dx * half]])
    return np.concatenate([end + cap, start - cap]), colour


def box(left: float, top: float, right: float, bottom: float, colour: Colour) -> Polygon:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]]), colour


def placed(
    figure: Iterable[Polygon], x: float, y: float, size: float, *, facing: int = 1, tilt: float = 0
) -> list[Polygon]:
    """Turn a figure to its direction of travel (1 right, -1 left), tilt it, set it on (x, y)."""
    cos, sin = size * math.cos(tilt), size * math.sin(tilt)
    turn = np.array([[facing * cos, facing * sin], [-sin, cos]])
    origin = np.array([x, y])
    return [(points @ turn + origin, colour) for points, colour in figure]


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, int(c * factor)) for c in colour)
    return red, green, blue


def _toward(start: Points, length: float, angle: float) -> Points:
    """The point `length` below start, swung forward by `angle`."""
    return start + length * np.array([np.sin(angle), np.cos(angle)])


@lru_cache(maxsize=4096)  # everybody takes many steps; treat the list as read-only
def person(
    looks: Looks,
    phase: float = 0.0,
    *,
    swing: float = 0.0,
    lean: float = 0.0,
    arms: tuple[float, float] | None = None,
    seat: float | None = None,
) -> list[Polygon]:
    """A person from the side, walking to the right: legs and arms swing with `phase`.

    `swing` is the angle of the legs in radians (0 stands, 0.5 walks, 0.9 runs), `arms` fixes the
    angles of the arms, and with `seat` the hip is that high and the legs turn pedals.
    """
    hip = np.array([0.0, -0.5 + 0.02 * abs(np.sin(phase)) * (swing > 0)])
    if seat is not None:
        hip = np.array([-0.12, -seat])
    shoulder = hip + 0.32 * np.array([np.sin(lean), -np.cos(lean)])
    head = shoulder + 0.12 * np.array([np.sin(lean * 0.7), -np.cos(lean * 0.7)])
    parts: list[Polygon] = []
    for side, shade in ((1, 0.75), (-1, 1.0)):  # the far leg and arm first, in shade
        turn = phase if side > 0 else phase + np.pi
        if seat is not None:
            foot = np.array([0.06 + 0.09 * np.cos(turn), -0.2 + 0.09 * np.sin(turn)])
            knee = (hip + foot) / 2 + np.array([0.13, -0.03])
        else:
            thigh = swing * np.sin(turn)
            bend = 1.3 * swing * max(0.0, np.cos(turn))
            knee = _toward(hip, 0.25, thigh + 0.25 * bend)
            foot = _toward(knee, 0.24, thigh - bend)
        legs = _shade(looks.legs, shade)
        parts += [limb(hip, knee, 0.115, legs), limb(knee, foot, 0.085, legs)]
        parts.append(limb(foot, foot + np.array([0.07, 0.0]), 0.05, _shade(looks.legs, 0.5)))
        angle = arms[side < 0] if arms is not None else -0.8 * swing * np.sin(turn)
        elbow = _toward(shoulder, 0.17, angle)
        hand = _toward(elbow, 0.16, angle + 0.25 + 0.9 * min(swing, 0.9) * (arms is None))
        arm = [limb(shoulder, elbow, 0.08, _shade(looks.top, shade * 0.9))]
        arm.append(limb(elbow, hand, 0.06, _shade(looks.skin, shade)))
        if side > 0:
            parts = arm + parts
        else:
            torso = [limb(hip, shoulder, 0.17, looks.top)]
            torso.append(limb(shoulder, head, 0.06, _shade(looks.skin, 0.85)))
            skull = [disc(head[0], head[1], 0.068, looks.skin)]
            skull.append(disc(head[0] - 0.014, head[1] - 0.02, 0.062, looks.hair))
            parts += torso + skull + arm
    return parts


def cart(driver: Looks, travelled: float) -> list[Polygon]:
    """A service cart driving to the right, about 1.6 persons long. `travelled` turns the wheels."""
    white, dark, green = (222, 226, 222), (40, 42, 44), (46, 106, 82)
    seated = placed(person(driver, arms=(1.2, 1.1)), 0.06, -0.12, 0.86)
    parts = [box(-0.66, -0.78, -0.62, -0.3, dark), box(0.34, -0.95, 0.37, -0.4, dark)]
    parts += seated
    parts += [
        box(-0.8, -0.66, -0.16, -0.26, green),  # load bed
        (np.array([[-0.8, -0.34], [0.6, -0.34], [0.78, -0.26], [0.8, -0.1], [-0.8, -0.1]]), white),
        (np.array([[0.34, -0.52], [0.6, -0.44], [0.76, -0.28], [0.34, -0.28]]), white),
        box(-0.22, -1.0, 0.46, -0.95, white),  # roof
        box(-0.2, -0.95, -0.17, -0.3, dark),
        box(0.7, -0.26, 0.8, -0.2, (240, 214, 120)),
    ]
    for hub in (-0.5, 0.5):
        parts += [disc(hub, -0.13, 0.13, dark), disc(hub, -0.13, 0.06, (150, 152, 152))]
        spoke = 0.1 * np.array([np.cos(travelled / 0.13), np.sin(travelled / 0.13)])
        centre = np.array([hub, -0.13])
        parts.append(limb(centre - spoke, centre + spoke, 0.03, (96, 98, 98)))
    return parts


def bicycle(rider: Looks, travelled: float) -> list[Polygon]:
    """A cyclist riding to the right."""
    frame = (176, 40, 36)
    rear, front, pedal = np.array([-0.3, -0.2]), np.array([0.34, -0.2]), np.array([0.02, -0.2])
    saddle, bar = np.array([-0.12, -0.5]), np.array([0.24, -0.56])
    parts = [ring(hub[0], hub[1], 0.2, 0.035, (28, 28, 30)) for hub in (rear, front)]
    for a, b in ((rear, pedal), (pedal, saddle), (saddle, rear), (pedal, bar), (bar, front)):
        parts.append(limb(a, b, 0.035, frame))
    parts.append(limb(saddle, bar, 0.035, frame))
    return parts + person(rider, travelled / 0.35, lean=0.6, arms=(0.75, 0.7), seat=0.53)


def ladder() -> list[Polygon]:
    """A long ladder as it is carried on a shoulder."""
    wood = (232, 150, 48)
    parts = [
        limb(np.array([-1.1, y]), np.array([1.1, y - 0.12]), 0.06, wood) for y in (-0.76, -0.56)
    ]
    for x in np.linspace(-1.0, 1.0, 9):
        y = -0.065 - 0.055 * x
        rung = (np.array([x, y - 0.7]), np.array([x, y - 0.5]))
        parts.append(limb(rung[0], rung[1], 0.045, wood))
    return parts


def bag() -> list[Polygon]:
    """A large bag left standing."""
    body = np.array([[-0.22, 0.0], [0.22, 0.0], [0.2, -0.24], [-0.2, -0.24]])
    handle = ring(0.0, -0.24, 0.09, 0.03, (20, 20, 22))
    return [handle, (body, (34, 40, 60)), (body * (1, 0.3) - (0, 0.1), (70, 40, 40))]


def flag(time: float) -> list[Polygon]:
    """A striped flag in the wind, on its pole: it always moves, and always there."""
    parts = [box(318, 6, 320, 66, (190, 190, 186))]
    x = np.linspace(0, 32, 9)
    wave = (1.5 + x * 0.1) * np.sin(x * 0.28 - time * 0.55) + x * 0.06 * np.sin(time * 0.21)
    for row, colour in enumerate([(112, 84, 140), (238, 234, 226), (112, 84, 140)]):
        upper = np.stack([320 + x, 8 + row * 6 + wave], axis=1)
        parts.append((np.vstack([upper, upper[::-1] + np.array([0, 6])]), colour))
    return parts


def foliage(leaves: NDArray[np.float64], time: float, wind: float) -> list[Polygon]:
    """A tree's crown: leaves (n, 4) are x, y, radius and shade. It sways with the wind."""
    parts = [box(56, 50, 62, 90, (84, 66, 48))]
    for x, y, radius, shade in leaves:
        sway = wind * (90 - y) / 60
        dx = sway * (np.sin(time * 0.16) + 0.6 * np.sin(time * 0.41 + x))
        dy = 0.4 * sway * np.sin(time * 0.37 + y)
        colour = (int(40 + 46 * shade), int(78 + 62 * shade), int(34 + 30 * shade))
        parts.append(disc(x + dx, y + dy, radius, colour))
    return parts


def lamp_post() -> list[Polygon]:
    """Stands between camera and paving, so that people pass behind it."""
    metal = (66, 72, 74)
    parts = [box(POST_X - 1.6, 62, POST_X + 1.6, POST_Y, metal)]
    parts += [box(POST_X - 4, POST_Y - 4, POST_X + 4, POST_Y, metal)]
    arm = limb(np.array([POST_X, 63.0]), np.array([POST_X - 16, 60.0]), 2.6, metal)
    return [*parts, arm, box(POST_X - 22, 58, POST_X - 11, 62, (206, 204, 186))]


def paint(image: Image, polygons: Iterable[Polygon], factor: float) -> None:
    """Fill polygons into a picture that is `factor` times 240 high, edges smooth."""
    fixed = factor * (1 << _SUBPIXEL)
    for points, colour in polygons:
        cv2.fillPoly(image, [(points * fixed).astype(np.int32)], colour, cv2.LINE_AA, _SUBPIXEL)


def paint_mask(
    mask: NDArray[np.uint8], polygons: Iterable[Polygon], factor: float, value: int
) -> None:
    """The same shapes as `paint`, hard-edged, into a mask (H, W)."""
    fixed = factor * (1 << _SUBPIXEL)
    for points, _ in polygons:
        cv2.fillPoly(mask, [(points * fixed).astype(np.int32)], (value,), cv2.LINE_8, _SUBPIXEL)


def shadow(polygons: Iterable[Polygon], y: float) -> list[Polygon]:
    """What a figure standing at y throws on the ground, the sun being behind on the left."""
    lay = np.array([[1.0, 0.0], [-0.55, 0.16]])  # height becomes distance along the ground
    origin = np.array([0.55 * y, 0.84 * y])
    return [(points @ lay + origin, colour) for points, colour in polygons]


def ground(size: tuple[int, int], rng: np.random.Generator) -> Image:
    """The empty scene: building, hedge, lawn, running track, paving, verge and service lane."""
    height, width = size
    factor = height / HEIGHT
    y = (np.arange(height) + 0.5)[:, None] / factor  # (H, 1)
    x = (np.arange(width) + 0.5)[None, :] / factor  # (1, W)
    right = width / factor

    def texture(cells: float, squeeze: float = 1.0) -> NDArray[np.float32]:
        """Smooth noise of unit spread with grains `cells` wide, flattened by the view."""
        shape = (max(2, int(HEIGHT / cells * squeeze)), max(2, int(right / cells)))
        grain = rng.standard_normal(shape).astype(np.float32)
        return np.asarray(cv2.resize(grain, (width, height), interpolation=cv2.INTER_CUBIC))

    canvas = np.empty((height, width, 3), np.float32)
    canvas[:] = (168, 160, 148)  # the building's wall
    strips: list[tuple[float, Colour]] = [
        (40, (58, 84, 48)),  # hedge
        (LAWN, (104, 136, 76)),
        (TRACK, (164, 104, 88)),
        (PAVING, (164, 160, 152)),
        (VERGE, (96, 130, 70)),
        (LANE - 4, (190, 188, 182)),  # kerb
        (LANE, (104, 106, 110)),
    ]
    for start, colour in strips:
        canvas[y[:, 0] >= start] = colour
    fine, coarse = texture(1.6, 1.8), texture(14, 2.5)
    rough = np.full((height, 1), 3.0, np.float32)  # (H, 1), contrast of each strip's texture
    for start, contrast in ((40, 14.0), (LAWN, 9.0), (TRACK, 5.0), (PAVING, 4.0), (VERGE, 9.0)):
        rough[y[:, 0] >= start] = contrast
    rough[y[:, 0] >= LANE - 4] = 4.0
    canvas += (rough * (fine + 0.8 * coarse))[..., None]
    # Paving joints: along the path they crowd towards the far side, across it they converge.
    depth = np.log(y + 30.0)
    slab = (depth * 14) % 1 < 0.1
    joint = ((x - right / 2) / (y + 60.0) * 9 + np.floor(depth * 14) * 0.5) % 1 < 0.06
    canvas[(y >= PAVING) & (y < VERGE) & (slab | joint)] -= 16
    image = np.clip(canvas, 0, 255).astype(np.uint8)

    details: list[Polygon] = [box(0, 36, right, 40, (120, 114, 106))]
    for left in np.arange(12, right, 52):
        details += [box(left, 6, left + 30, 28, (204, 200, 192))]
        details += [box(left + 2, 8, left + 28, 26, (70, 88, 104))]
        details += [box(left + 14, 8, left + 16, 26, (204, 200, 192))]
    for edge in (TRACK, PAVING, VERGE):
        details.append(box(0, edge - 1, right, edge + 0.6, (206, 202, 194)))
    for left in np.arange(-10, right, 44):
        details.append(box(left, 209, left + 22, 211, (206, 204, 170)))
    for left in (196.0, 222.0):  # a bench on the far lawn
        details.append(box(left, 82, left + 2, 89, (50, 48, 46)))
    details += [box(192, 79, 228, 82, (128, 92, 60)), box(192, 71, 228, 74, (128, 92, 60))]
    paint(image, details, factor)
    return image
