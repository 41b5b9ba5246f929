from pathlib import Path

import pytest

from sfn_rt.exceptions import InputError
from sfn_rt.options import BackendOptions, BenchOptions, EvalOptions, ScoreOptions, parse_terms


def test_terms_are_put_in_order() -> None:
    assert parse_terms("semantic, visual") == ("visual", "semantic")
    assert parse_terms(None) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threads": 0}, "--threads must be at least 1, got 0"),
        ({"fps": -1.0}, "--fps must be above 0"),
        ({"fps": float("nan")}, "--fps must be above 0"),
        ({"terms": ()}, "--terms names none"),
        ({"terms": ("speed",)}, "unknown speed; choose from visual, semantic, attribute"),
        ({"resume": True, "force": True}, "give one of the two"),
    ],
)
def test_nonsense_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ScoreOptions(out=Path("out"), **settings)


def test_unknown_terms_name_the_known_ones() -> None:
    with pytest.raises(InputError, match="unknown audio; choose from visual"):
        parse_terms("visual,audio")


def test_evaluation_and_bench_check_too() -> None:
    with pytest.raises(InputError, match="--threads"):
        EvalOptions(out=Path("out"), threads=-2)
    with pytest.raises(InputError, match="--frames"):
        BenchOptions(frames=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "gpu"}, "one of cpu, cuda, tensorrt, tensorrt-rtx, got 'gpu'"),
        ({"name": "cuda", "engines": Path("e")}, "--engines is for --backend tensorrt"),
        ({"name": "cuda", "device": -1}, "--device must be 0 or more"),
        ({"device": 1}, "leave it out with --backend cpu"),
    ],
)
def test_a_backend_that_is_none(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BackendOptions(**settings)
