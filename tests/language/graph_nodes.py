"""What a graph of autograd consists of."""

from __future__ import annotations

from collections import Counter

from torch import Tensor


def kinds_of_nodes(result: Tensor) -> Counter[str]:
    """How many nodes of each kind stand behind a result."""
    assert result.grad_fn is not None
    seen, to_see = {result.grad_fn}, [result.grad_fn]
    while to_see:
        for node, _ in to_see.pop().next_functions:
            if node is not None and node not in seen:
                seen.add(node)
                to_see.append(node)
    return Counter(node.name() for node in seen)
