"""Which of two ways attends faster: torch's fused kernel, or two plain matrix products with all scores between them.

Measured by `benchmark attention`.
"""

from __future__ import annotations

import torch
from torch import Tensor

# On a CPU the kernel is the faster way, or about as fast, and spares the memory of the scores; only its backward pass
# in bfloat16 is slow, two to five times that of products for few tokens. From about so many on it wins there too.
PRODUCTS_IN_BFLOAT16_AT_MOST = 768


def products_are_faster(query: Tensor) -> bool:
    """Whether two plain matrix products are the faster way, forward and back together.

    Forward alone the kernel always is; yet whether gradients are wanted must not change what a block computes.

    Args:
        query: (B, H, N, D).
    """
    few = query.shape[2] <= PRODUCTS_IN_BFLOAT16_AT_MOST
    return few and query.dtype == torch.bfloat16 and not query.is_cuda
