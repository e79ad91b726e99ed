"""NorMuon: orthogonalised momentum for the matrices of the blocks, AdamW for all other parameters.

A step for a matrix W [m, n] with gradient G, at learning rate η (Li et al. 2025, "NorMuon", algorithm 1):

    M = β₁·M + (1 − β₁)·G                         momentum
    N = β₁·M + (1 − β₁)·G                         Nesterov's step from it
    O = U·Vᵀ of N's singular value decomposition  orthogonal.py; Jordan et al. 2024, "Muon"
    v = β₂·v + (1 − β₂)·mean of O² over each row  second moment of an output neuron
    Ô = O / (√v + ε)
    W = W − η·λ·W − 0.2·η·√(m·n) / |Ô| · Ô        as large as AdamW's update (Liu et al. 2025, "Moonlight")

The two halves of SwiGLU's `w12`, gate and up, count as two matrices.

M and v are kept for the elements of a rank's partition, under the names of AdamW's moments; v is repeated for each
element of its row. Checkpoints therefore work unchanged at every ZeRO stage and number of ranks. Gradients arrive
reduced and clipped, so clipping means the same as for AdamW. (DeepSpeed's own Muon clips the orthogonalised update.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import distributed

from amplify_ds.config import Optimizer
from amplify_ds.training.adamw import AdamW
from amplify_ds.training.orthogonal import Fragment, Matrices

UPDATE_RMS = 0.2  # root mean square of AdamW's update in units of the learning rate (measured by Moonlight)
EPS = 1e-8


class NorMuon(AdamW):
    """NorMuon for the matrices of the blocks and AdamW for the other parameters, as two parameter groups.

    locate: function that returns the fragments of parameters in a partition. With ZeRO, set it before the first step.
    """

    def __init__(self, model: torch.nn.Module, settings: Optimizer, device: torch.device):
        parameters = dict(model.named_parameters())
        blocks = {name: p for name, p in parameters.items() if name.startswith("transformer_encoder.")}
        matrices = {name: p for name, p in blocks.items() if p.dim() == 2}
        groups = [
            {"params": list(matrices.values()), "matrices": True, "weight_decay": settings.matrix_weight_decay},
            {"params": [p for name, p in parameters.items() if name not in matrices], "matrices": False},
        ]
        super().__init__(
            groups,
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=device.type == "cuda" or None,
        )
        self._device = device
        self._precision = torch.bfloat16 if device.type == "cuda" else torch.float32
        self._momentum, self._beta = settings.matrix_momentum, settings.matrix_beta
        self._lr_share = settings.matrix_lr / settings.lr
        self._parameters = {name: (p.shape[0], p.shape[1]) for name, p in matrices.items()}
        names = {id(p): name for name, p in matrices.items()}
        self.locate: Callable[[torch.Tensor], list[Fragment]] = lambda p: [Fragment(names[id(p)], 0, p.numel(), 0)]
        self._shapes = {
            key: shape for name in matrices for key, shape in matrices_of(name, self._parameters[name]).items()
        }
        self._matrices: dict[tuple[int, ...], Matrices] = {}

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure: DeepSpeed gives none
        """Take one step. Must be called on every rank."""
        partitions = []
        for group in self.param_groups:
            if group["matrices"]:
                partitions += [p for p in group["params"] if p.grad is not None]
                self._step_matrices(partitions, group["lr"] * self._lr_share, group["weight_decay"])
        gradients = [p.grad for p in partitions]
        for partition in partitions:
            partition.grad = None  # so that AdamW skips it
        super().step()
        for partition, gradient in zip(partitions, gradients):
            partition.grad = gradient

    @torch.no_grad()
    def _step_matrices(self, partitions: list[torch.Tensor], lr: float, decay: float) -> None:
        if not partitions:
            return
        matrices = self._look_up(partitions)
        orthogonal = matrices.orthogonal([self._momentum_of(p).to(self._device, self._precision) for p in partitions])
        indices = {name: index for index, name in enumerate(matrices.shapes)}
        squares = torch.zeros(len(indices), device=self._device)
        updates = []
        for name, begin, length, offset, number in matrices.local:
            second = self.state[partitions[number]]["exp_avg_sq"].view(-1)[offset : offset + length]
            o = orthogonal[name].float()
            rows = o.square().mean(1, keepdim=True).expand_as(o)
            o, rows = (x.reshape(-1)[begin : begin + length].to(second.device) for x in (o, rows))
            second.lerp_(rows, 1 - self._beta)
            updates.append(o / second.sqrt().add_(EPS))
            squares[indices[name]] += updates[-1].square().sum().to(self._device)
        if matrices.split:
            distributed.all_reduce(squares)
        inverse = squares.clamp_min_(1e-30).rsqrt_()
        for update, (name, _, length, offset, number) in zip(updates, matrices.local):
            weight = partitions[number].view(-1)[offset : offset + length]
            size = math.prod(matrices.shapes[name])
            update.mul_(inverse[indices[name]].to(update.device))
            weight.mul_(1 - lr * decay).sub_(update, alpha=UPDATE_RMS * lr * math.sqrt(size))

    def _momentum_of(self, partition: torch.Tensor) -> torch.Tensor:
        """Add the gradient to the momentum; return Nesterov's step from it, flat."""
        state, gradient = self.state[partition], partition.grad
        assert gradient is not None  # `step` chooses partitions that have one
        if not state:
            state["step"] = torch.zeros(())  # not used; AdamW's state has it too
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(partition), torch.zeros_like(partition)
        momentum = state["exp_avg"].lerp_(gradient, 1 - self._momentum)
        return gradient.lerp(momentum, self._momentum).flatten()

    def _look_up(self, partitions: list[torch.Tensor]) -> Matrices:
        """Return the matrices in the partitions, looked up once."""
        key = tuple(map(id, partitions))
        if key not in self._matrices:
            located = [fragment._replace(partition=n) for n, p in enumerate(partitions) for fragment in self.locate(p)]
            local = [part for fragment in located for part in _split(fragment, self._parameters[fragment.matrix])]
            fragments, rank = [local], 0
            if distributed.is_initialized():
                fragments, rank = [local] * distributed.get_world_size(), distributed.get_rank()
                distributed.all_gather_object(fragments, local)  # replaces each entry by that rank's
            self._matrices[key] = Matrices(self._shapes, fragments, rank)
        return self._matrices[key]


def matrices_of(name: str, shape: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """Return {name: shape} of the matrices that are stacked in a parameter."""
    if not name.endswith(".w12.weight"):
        return {name: shape}
    return {f"{name}:{half}": (shape[0] // 2, shape[1]) for half in ("gate", "up")}


def _split(fragment: Fragment, shape: tuple[int, int]) -> Iterator[Fragment]:
    """Yield a fragment of a parameter as fragments of its matrices."""
    first = 0  # the matrix's first element in the parameter
    for name, (rows, columns) in matrices_of(fragment.matrix, shape).items():
        begin, end = max(fragment.begin, first), min(fragment.begin + fragment.length, first + rows * columns)
        if begin < end:
            yield Fragment(
                name, begin - first, end - begin, fragment.offset + begin - fragment.begin, fragment.partition
            )
        first += rows * columns
