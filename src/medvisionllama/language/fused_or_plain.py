"""Which of two ways attends faster: torch's fused kernel, or two plain matrix products with all scores between them.

Measured by `benchmark attention`.
"""

from __future__ import annotations

import torch
from torch import Tensor

# On a CPU the kernel is the faster way, but for some numbers of tokens in float32 where it is a fifth slower, and it
# spares the memory of the scores. Only its backward pass in bfloat16 is slow; from about so many tokens on it wins
# there too, or what blocks have in its place (`attention_gradient`).
PRODUCTS_IN_BFLOAT16_AT_MOST = 1024


def products_are_faster(query: Tensor) -> bool:
    """Whether two plain matrix products are the faster way, forward and back together.

    Forward alone the kernel wins in bfloat16 as well; yet whether gradients are wanted must change nothing.

    Args:
        query: (B, H, N, D).
    """
    # The format first: a compiler then learns of the limit only where it counts.
    return query.dtype == torch.bfloat16 and not query.is_cuda and query.shape[2] <= PRODUCTS_IN_BFLOAT16_AT_MOST
