"""Every row's gradient in the coordinates of a LoRA adapter at its start: G_i A0^T, [out, r] instead of [out, in].

To first order it is the row's gradient in B. It is a few hundred times smaller than the full gradient, and falls
out of the landscape's own forward and backward pass: with x_t the module's input and d_t the gradient of its output
at token t, G_i A0^T = sum_t d_t (A0 x_t)^T.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

import torch
from torch import Tensor, nn

from foretune.tasks.numerics.factored import Gradient
from foretune.tasks.numerics.products import Corrected, Summed


class RowTaps:
    """Context manager that records (A0 x) and the output of linear modules in forward passes.

    A preference pair runs every module twice, chosen and rejected: the parts of a row are added.
    """

    def __init__(self, modules: Mapping[str, nn.Module], factors: Mapping[str, Tensor]) -> None:
        self._modules, self._factors = modules, factors  # weight name -> module, A0 [r, in]
        self._seen: list[tuple[str, Tensor, Tensor]] = []  # name, A0 x [b, s, r], output [b, s, out]
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> RowTaps:
        self._handles = [m.register_forward_hook(self._recorder(name)) for name, m in self._modules.items()]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._seen = []

    def _recorder(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = inputs[0].detach()
            self._seen.append((name, nn.functional.linear(x, self._factors[name].to(x.dtype)), output))

        return record

    def outputs(self) -> list[Tensor]:
        """What the loss is to be differentiated in, since the last `projected`."""
        return [output for _, _, output in self._seen]

    def projected(self, gradients: Sequence[Tensor]) -> dict[str, Tensor]:
        """{name: [b, out, r]} fp32 from the gradients of `outputs()`; forgets what was recorded.

        A layer that is computed again on the way back is recorded again, behind what was differentiated.
        """
        rows: dict[str, Tensor] = {}
        for (name, inner, _), gradient in zip(self._seen, gradients, strict=False):
            part = torch.einsum("bso,bsr->bor", gradient.float(), inner.float())
            rows[name] = rows[name] + part if name in rows else part
        self._seen = []
        return rows


@dataclass(frozen=True)
class RowGradients:
    """G_i A0^T of every trained row, in the order in which the trainer numbers the rows.

    `read(rows, name)` returns [rows, out, r], each of a row's summed loss, in any float dtype.
    """

    factors: Mapping[str, Tensor]  # weight name -> A0 [r, in]
    tokens: tuple[float, ...]  # label tokens per row (1 per pair for DPO)
    read: Callable[[Sequence[int], str], Tensor] = field(repr=False)
    _lifts: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def sum(self, shares: Mapping[int, float], name: str, device: torch.device) -> Tensor:
        """sum_i s_i G_i A0^T, [out, r] fp32; the s_i are `shares`, by row, of one row at least."""
        rows = self.read(list(shares), name).to(device, torch.float32)
        return torch.tensordot(torch.tensor(list(shares.values()), device=device), rows, 1)

    def start(self, name: str, like: Gradient | Summed) -> Tensor:
        """A0, [r, in], in the dtype and on the device of a gradient."""
        return self.factors[name].to(like.device, like.dtype)

    def moved(self, gradient: Tensor | Summed, change: Tensor, name: str) -> Corrected | Summed:
        """G + D (A0^T)^+, [out, in]: G with D = `change` [out, r] added to G A0^T, and nothing outside A0's row space.

        With D = sum_i s_i G_i A0^T - G A0^T this is G (I - P) + sum_i s_i G_i P, P = A0^+ A0 the projection on that
        space: inside it exactly the gradient of a batch of those rows. Outside it only `gradient` is known, that of a
        batch of the same size but of other rows; an approximation there matters little, because it enters through
        the motion of A alone.
        """
        lift = self._lift(name, self.start(name, gradient))
        return Corrected(gradient, change, lift) if isinstance(gradient, Tensor) else gradient.moved(change, lift)

    def _lift(self, name: str, down: Tensor) -> Tensor:
        """[r, in] with (G A0^T) lift = G projected on the row space of A0; the rank may exceed the input width."""
        if name not in self._lifts:
            self._lifts[name] = torch.linalg.pinv(down.T)
        return self._lifts[name]
