"""Gradients that are the same at every call, or a resumed run would not be the run that was not interrupted."""

from __future__ import annotations

from typing import Any

import torch

from tests.nn.test_recompute import built, every_network, passed


@every_network
def test_no_gradient_is_added_up_in_an_order_that_threads_decide(spec: dict[str, Any]) -> None:
    """The backward pass of x[index] lets threads race for the rows that occur twice; of index_select, it does not.

    A mask chooses no row twice.
    """
    nodes, todo = set(), [passed(built(spec)).grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            todo += [parent for parent, _ in node.next_functions]
    assert len(nodes) > 50
    indices = [index for node in nodes if node.name() == "IndexBackward0" for index in node._saved_indices]
    assert all(index is None or index.dtype == torch.bool for index in indices)
