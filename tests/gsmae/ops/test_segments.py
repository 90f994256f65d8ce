"""Reductions over segments."""

import importlib.util
from typing import get_args

import pytest
import torch

from gsmae.errors import GsmaeError
from gsmae.ops.reference.segments import Reduce, segment_reduce

HAS_SCATTER = importlib.util.find_spec("torch_scatter") is not None
REDUCE = {"sum": torch.sum, "mean": torch.mean, "max": torch.amax, "min": torch.amin}


@pytest.mark.parametrize("reduce", list(REDUCE))
@pytest.mark.parametrize(
    "engine",
    [
        "torch",
        pytest.param("torch_scatter", marks=pytest.mark.skipif(not HAS_SCATTER, reason="torch-scatter not installed")),
    ],
)
def test_each_segment_is_reduced_on_its_own(reduce, engine):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(50, 3, 2, generator=generator)
    index = torch.randint(0, 6, (50,), generator=generator)
    index[index == 4] = 5
    out = segment_reduce(values, index, 7, reduce, engine)
    for segment in range(7):
        rows = values[index == segment]
        expected = REDUCE[reduce](rows, dim=0) if len(rows) else torch.zeros(3, 2)
        torch.testing.assert_close(out[segment], expected)


def test_no_rows_at_all_give_zeros():
    assert segment_reduce(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), 3, "max").tolist() == [[0, 0]] * 3


def test_gradients_flow_back_to_the_rows():
    values = torch.rand(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    index = torch.tensor([0, 1, 1, 3, 3, 3, 0, 1])
    for reduce in get_args(Reduce):

        def reduced(v, reduce=reduce):
            return segment_reduce(v, index, 4, reduce)

        assert torch.autograd.gradcheck(reduced, values)


def test_unknown_names_list_the_known_ones():
    values, index = torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="product.*mean"):
        segment_reduce(values, index, 1, "product")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nope.*torch_scatter"):
        segment_reduce(values, index, 1, engine="nope")
    with pytest.raises(ValueError, match="2 rows"):
        segment_reduce(values, index[:1], 1)


@pytest.mark.skipif(HAS_SCATTER, reason="torch-scatter is installed")
def test_a_missing_engine_names_its_install_command():
    with pytest.raises(GsmaeError, match="pip install"):
        segment_reduce(torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64), 1, engine="torch_scatter")
