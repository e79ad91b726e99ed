"""NorMuon: orthogonalised momentum for the matrices of the blocks, AdamW for all other parameters.

A step for a matrix W [m, n] with gradient G, at learning rate η (Li et al. 2025, "NorMuon", algorithm 1):

    M = β₁·M + (1 − β₁)·G                         momentum; (1 − β₁)·G + β₁·M goes on (Nesterov)
    O = U·Vᵀ of its singular value decomposition  orthogonal.py; Jordan et al. 2024, "Muon"
    v = β₂·v + (1 − β₂)·mean of O² over each row  the second moment of an output neuron
    Ô = O / (√v + ε)
    W = W − η·λ·W − 0.2·η·√(m·n) / |Ô| · Ô        as large as AdamW's update is (Liu et al. 2025, "Moonlight")

The two halves of SwiGLU's `w12`, gate and up, are two matrices.

M and v are kept for the elements of a rank's partition, as AdamW's moments are and under their names, v once for each
element of its row: checkpoints, ZeRO stages and other numbers of ranks need nothing new. Gradients arrive reduced and
clipped: clipping means what it means for AdamW, whereas DeepSpeed's own Muon clips the orthogonalised update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import distributed

from amplify_ds.config import Optimizer
from amplify_ds.training.adamw import AdamW
from amplify_ds.training.orthogonal import Fragment, Matrices

UPDATE_RMS = 0.2  # root mean square of AdamW's update, in learning rates, as Moonlight measured it
EPS = 1e-8


class NorMuon(AdamW):
    """One optimizer of two parameter groups: the matrices, and what AdamW steps.

    Whoever cuts the parameters into partitions sets `locate`: the fragments of parameters that a partition holds.
    """

    def __init__(self, model: torch.nn.Module, settings: Optimizer, device: torch.device):
        parameters = dict(model.named_parameters())
        chosen = {name: p for name, p in parameters.items() if name.startswith("transformer_encoder.") and p.dim() == 2}
        groups = [
            {"params": list(chosen.values()), "matrices": True, "weight_decay": settings.matrix_weight_decay},
            {"params": [p for name, p in parameters.items() if name not in chosen], "matrices": False},
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
        self._parameters = {name: (p.shape[0], p.shape[1]) for name, p in chosen.items()}
        names = {id(p): name for name, p in chosen.items()}
        self.locate: Callable[[torch.Tensor], list[Fragment]] = lambda p: [Fragment(names[id(p)], 0, p.numel(), 0)]
        self._shapes = {
            key: shape for name in chosen for key, shape in matrices_of(name, self._parameters[name]).items()
        }
        self._matrices: dict[tuple[int, ...], Matrices] = {}

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure: DeepSpeed gives none
        """Take one step. Must be called on every rank."""
        done = []
        for group in self.param_groups:
            if group["matrices"]:
                done += [p for p in group["params"] if p.grad is not None]
                self._step_matrices(done, group["lr"] * self._lr_share, group["weight_decay"])
        gradients = [p.grad for p in done]
        for partition in done:
            partition.grad = None  # AdamW passes over it
        super().step()
        for partition, gradient in zip(done, gradients):
            partition.grad = gradient

    @torch.no_grad()
    def _step_matrices(self, partitions: list[torch.Tensor], lr: float, decay: float) -> None:
        if not partitions:
            return
        matrices = self._found(partitions)
        orthogonal = matrices.orthogonal([self._momentum_of(p).to(self._device, self._precision) for p in partitions])
        places = {name: place for place, name in enumerate(matrices.shapes)}
        squares = torch.zeros(len(places), device=self._device)
        updates = []
        for name, begin, length, offset, number in matrices.own:
            second = self.state[partitions[number]]["exp_avg_sq"].view(-1)[offset : offset + length]
            o = orthogonal[name].float()
            rows = o.square().mean(1, keepdim=True).expand_as(o)
            o, rows = (x.reshape(-1)[begin : begin + length].to(second.device) for x in (o, rows))
            second.lerp_(rows, 1 - self._beta)
            updates.append(o / second.sqrt().add_(EPS))
            squares[places[name]] += updates[-1].square().sum().to(self._device)
        if matrices.cut:
            distributed.all_reduce(squares)
        inverse = squares.clamp_min_(1e-30).rsqrt_()
        for update, (name, _, length, offset, number) in zip(updates, matrices.own):
            weight = partitions[number].view(-1)[offset : offset + length]
            size = math.prod(matrices.shapes[name])
            update.mul_(inverse[places[name]].to(update.device))
            weight.mul_(1 - lr * decay).sub_(update, alpha=UPDATE_RMS * lr * math.sqrt(size))

    def _momentum_of(self, partition: torch.Tensor) -> torch.Tensor:
        """Take the gradient into the momentum; returns Nesterov's step from it, flat."""
        state, gradient = self.state[partition], partition.grad
        assert gradient is not None  # `step` takes those that have one
        if not state:
            state["step"] = torch.zeros(())  # counts nothing; AdamW's states have it
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(partition), torch.zeros_like(partition)
        momentum = state["exp_avg"].lerp_(gradient, 1 - self._momentum)
        return gradient.lerp(momentum, self._momentum).flatten()

    def _found(self, partitions: list[torch.Tensor]) -> Matrices:
        """What the partitions hold, looked up once."""
        key = tuple(map(id, partitions))
        if key not in self._matrices:
            located = [fragment._replace(partition=n) for n, p in enumerate(partitions) for fragment in self.locate(p)]
            own = [half for fragment in located for half in _split(fragment, self._parameters[fragment.matrix])]
            fragments, rank = [own], 0
            if distributed.is_initialized():
                fragments, rank = [own] * distributed.get_world_size(), distributed.get_rank()
                distributed.all_gather_object(fragments, own)  # puts each rank's in its place
            self._matrices[key] = Matrices(self._shapes, fragments, rank)
        return self._matrices[key]


def matrices_of(name: str, shape: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """{name: shape} of the matrices that a parameter holds, one above the other."""
    if not name.endswith(".w12.weight"):
        return {name: shape}
    return {f"{name}:{half}": (shape[0] // 2, shape[1]) for half in ("gate", "up")}


def _split(fragment: Fragment, shape: tuple[int, int]) -> Iterator[Fragment]:
    """A fragment of a parameter as fragments of its matrices."""
    first = 0  # element of the parameter
    for name, (rows, columns) in matrices_of(fragment.matrix, shape).items():
        begin, end = max(fragment.begin, first), min(fragment.begin + fragment.length, first + rows * columns)
        if begin < end:
            yield Fragment(
                name, begin - first, end - begin, fragment.offset + begin - fragment.begin, fragment.partition
            )
        first += rows * columns
