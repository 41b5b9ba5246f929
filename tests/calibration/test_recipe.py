"""Recipes are read strictly, and those that come with the project are of use."""

from pathlib import Path

import pytest

from sfn_calib.exceptions import CalibrationError
from sfn_calib.recipe import Budget, Recipe, known_recipes
from sfn_train.exceptions import ConfigError

BUDGET = "\nbudget: {auc_points: 0.3, spearman: 0.9, rerouted: 0.4}"


def test_every_precision_has_a_recipe_of_its_name() -> None:
    assert known_recipes() == ["bf16", "fp16", "fp8", "int8"]
    for name in known_recipes():
        recipe = Recipe.load(name)
        assert recipe.name == recipe.precision == name
        points = 0.05 if name == "fp16" else 0.3
        assert recipe.budget.auc_points == points
        assert recipe.needs_ranges == (name in ("int8", "fp8"))
        assert recipe.to_json()["budget"]["auc_points"] == points


def test_a_file_is_named_after_itself_and_keeps_its_reasons(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("precision: int8\nstay:\n  - nodes: head.*\n    why: it is the score" + BUDGET)
    recipe = Recipe.load(str(path))
    assert recipe.name == "mine"
    assert recipe.stay[0].why == "it is the score"
    assert recipe.to_json()["stay"] == ({"nodes": "head.*", "why": "it is the score"},)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("precision: int8", "budget must set auc_points, spearman, rerouted"),
        ("budget: {auc_points: 1, spearman: 1, rerouted: 1}", "the file must set precision"),
        ("precision: int4", "precision must be one of fp16, bf16, int8, fp8"),
        ("precision: int8\nrange: minmax", "no setting 'range'; did you mean 'ranges'"),
        ("precision: fp16\nbeside: fp16" + BUDGET, "beside is of int8 and fp8"),
        ("precision: int8\noperators: [Add]" + BUDGET, "operators must be some of"),
        ("precision: int8\npercentile: 5" + BUDGET, "percentile must be above 50"),
        ("precision: int8\nbudget: {auc_points: 0.3}", "budget must set spearman, rerouted"),
        ("precision: int8\nstay: [{nodes: a}]" + BUDGET, "stay must set why"),
        ("- int8", "must hold settings"),
        ("", "must hold settings"),
    ],
)
def test_nonsense_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        Recipe.load(str(path))
    assert str(path) in str(caught.value)


def test_what_is_no_recipe_says_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="bf16, fp16, fp8, int8"):
        Recipe.load("int3")
    (tmp_path / "no.yaml").write_text("a: [")
    with pytest.raises(CalibrationError, match="not YAML"):
        Recipe.load(str(tmp_path / "no.yaml"))


@pytest.mark.parametrize("bad", [{"auc_points": 0.0}, {"spearman": 1.2}, {"rerouted": -0.1}])
def test_a_budget_is_a_share_or_points(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Budget(**({"auc_points": 0.3, "spearman": 0.9, "rerouted": 0.1} | bad))
