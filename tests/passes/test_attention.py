"""Which attention kernels a GPU uses; that they are faster was measured."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.chain


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    import torch

    was = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(was)


@pytest.mark.parametrize(("longest", "kept"), [(512, False), (1024, False), (1025, True)])
def test_only_long_rows_have_attention_by_cudnn(longest: int, kept: bool) -> None:
    import torch

    from pipeline.passes.attention import without_plans

    without_plans(longest)
    assert torch.backends.cuda.cudnn_sdp_enabled() is kept
