"""The number of parts and of numbers of networks, limited while they are built."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn
from torch.nn.modules import module


class TooLargeError(Exception):
    """A network has more parts or numbers than it may have."""


@contextmanager
def counted(n_parts: int, n_elements: int) -> Iterator[None]:
    """Raise `TooLargeError` in this thread at the registration of one part or number too many."""
    thread, left = threading.get_ident(), [n_parts, n_elements]

    def count(_module: nn.Module, _name: str, part: Tensor | nn.Module | None) -> None:
        if threading.get_ident() != thread:
            return
        left[0] -= 1
        left[1] -= part.numel() if isinstance(part, Tensor) else 0
        if min(left) < 0:
            raise TooLargeError

    with ExitStack() as hooks:
        for register in (
            module.register_module_module_registration_hook,
            module.register_module_parameter_registration_hook,
            module.register_module_buffer_registration_hook,
        ):
            hooks.callback(register(count).remove)
        yield
