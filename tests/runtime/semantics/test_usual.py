"""The captions of normal footage in a bundle."""

import numpy as np
import pytest

from sfn_rt.exceptions import BundleError
from sfn_rt.semantics.usual import UsualCaptions

EMBEDDINGS = np.eye(2, 4, dtype=np.float32)
SHARES = np.array([0.75, 0.25], np.float32)


def test_they_can_be_stored() -> None:
    texts = ("Nothing moves.", "一辆车 'quoted' " + "x" * 3000)
    usual = UsualCaptions(texts, EMBEDDINGS, SHARES)
    again = UsualCaptions.from_arrays(usual.to_arrays())
    assert again.texts == texts
    np.testing.assert_array_equal(again.embeddings, EMBEDDINGS)
    np.testing.assert_array_equal(again.shares, SHARES)


def test_the_nearest_is_found_by_meaning() -> None:
    usual = UsualCaptions(("a", "b"), EMBEDDINGS, SHARES)
    assert usual.nearest(np.array([0.6, 0.8, 0, 0], np.float32)) == (1, pytest.approx(0.8))


@pytest.mark.parametrize("name", ["texts", "embeddings", "shares"])
def test_an_array_that_is_missing_or_too_short_is_named(name: str) -> None:
    arrays = UsualCaptions(("a", "b"), EMBEDDINGS, SHARES).to_arrays()
    with pytest.raises(BundleError, match=f"lack {name}; train again"):
        UsualCaptions.from_arrays({k: v for k, v in arrays.items() if k != name})
    with pytest.raises(BundleError, match=r"do not fit together: .* train again"):
        UsualCaptions.from_arrays(arrays | {name: arrays[name][:1]})


def test_none_at_all_is_a_mistake() -> None:
    with pytest.raises(BundleError, match="0 texts"):
        UsualCaptions((), EMBEDDINGS[:0], SHARES[:0])
