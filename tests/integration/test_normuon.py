"""NorMuon under DeepSpeed against a plain loop, matrix by matrix, around the independent reference model."""

import os

import pytest
import torch
from safetensors.torch import load_file

from amplify_ds import config
from amplify_ds.training.orthogonal import Fragment, Matrices, orthogonal_factor
from tests.support.commands import run
from tests.support.plain_training import plain_training
from tests.support.training import launch_words, losses, train

NORMUON = {"optimizer__kind": "normuon", "optimizer__matrix_lr": 0.01, "optimizer__matrix_weight_decay": 0.1}


class PlainNorMuon:
    """NorMuon as in the paper, one whole matrix at a time, and torch's AdamW for the other parameters."""

    def __init__(self, model, settings):
        named = dict(model.named_parameters())
        self.matrices = [p for name, p in named.items() if "transformer_encoder" in name and p.dim() == 2]
        self.halved = {id(p) for name, p in named.items() if name.endswith("ffn.w12.weight")}
        others = [p for p in named.values() if not any(p is one for one in self.matrices)]
        self.adamw = torch.optim.AdamW(others, settings.lr, settings.betas, settings.eps, settings.weight_decay)
        self.param_groups = self.adamw.param_groups
        self.moments = {}

    def zero_grad(self):
        self.adamw.zero_grad()
        for p in self.matrices:
            p.grad = None

    @torch.no_grad()
    def step(self):
        self.adamw.step()
        lr = self.param_groups[0]["lr"] / 5e-3 * 0.01  # matrix_lr follows the same schedule
        for p in self.matrices:
            halves = 2 if id(p) in self.halved else 1
            for number, (w, g) in enumerate(zip(p.chunk(halves), p.grad.chunk(halves))):
                m, v = self.moments.get((id(p), number), (torch.zeros_like(w), torch.zeros(len(w), 1)))
                m = 0.95 * m + 0.05 * g
                x = 0.05 * g + 0.95 * m
                x = x / x.norm()
                for _ in range(5):
                    square = x @ x.T
                    x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
                v = 0.95 * v + 0.05 * (x**2).mean(1, keepdim=True)
                self.moments[id(p), number] = m, v
                update = x / (v**0.5 + 1e-8)
                w.copy_((1 - lr * 0.1) * w - 0.2 * lr * w.numel() ** 0.5 * update / update.norm())


@pytest.fixture(scope="module")
def plain(shards):
    return plain_training(shards, optimizer_of=PlainNorMuon)


def test_every_stage_steps_as_whole_matrices_would(plain, shards, tmp_path):
    """One run of which each part has another ZeRO stage and number of ranks, continued from checkpoints."""
    for stage, ranks, steps in ((0, 2, 3), (3, 2, 6), (2, 2, 8), (1, 1, 10)):
        result = train(ranks, tmp_path / "run", shards, stage, **NORMUON, training__steps=steps)
        assert result.returncode == 0, result.stderr
    assert list(losses(tmp_path / "run").values()) == pytest.approx(plain[0], abs=1e-5)
    saved = load_file(tmp_path / "run/checkpoints/step-00000010/model.safetensors")
    for name, weight in plain[2].items():
        torch.testing.assert_close(
            saved[name], weight, atol=1e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )
    moments = load_file(tmp_path / "run/checkpoints/step-00000010/optimizer.safetensors")
    [second] = [moment for name, moment in moments.items() if "exp_avg_sq" in name and "0.ffn.w3" in name]
    assert (second == second[:, :1]).all() and len(second.unique()) > 1, "one second moment per row"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="GPU test: no CUDA device here, not run")
@pytest.mark.parametrize("stage", ["0", "1", "2_overlap", "3"])
def test_a_gpu_which_orthogonalises_in_half_precision_stays_near(plain, shards, tmp_path, stage):
    command = launch_words(1, tmp_path / "run", shards, stage, training__precision="bf16", **NORMUON)
    result = run(*command, env=dict(os.environ))
    assert result.returncode == 0, result.stderr
    assert list(losses(tmp_path / "run").values()) == pytest.approx(plain[0], abs=5e-2)


@pytest.mark.parametrize("shape", [(24, 24), (40, 16), (16, 40)])
def test_the_orthogonal_factor_keeps_singular_vectors_and_evens_singular_values(shape):
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape, dtype=torch.float64)
    for matrix, factor in zip(matrices, orthogonal_factor(matrices)):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        values = u.T @ factor @ vh.T
        torch.testing.assert_close(values, values.diag().diag(), atol=1e-12, rtol=0)
        clear = s > s[0] / 50  # a value near 0 needs more iterations
        assert ((values.diag() > 0.65) & (values.diag() < 1.25))[clear].all() and clear.sum() > 10


def test_matrices_are_assembled_from_fragments_in_any_order():
    """With one rank, all fragments are local."""
    torch.manual_seed(0)
    a, b = torch.randn(6, 4), torch.randn(3, 5)
    flat = torch.cat([b.flatten(), torch.zeros(2), a.flatten()])
    fragments = [Fragment("a", 0, 24, 17), Fragment("b", 0, 15, 0)]
    factors = Matrices({"a": (6, 4), "b": (3, 5)}, [fragments], 0).orthogonal([flat])
    for name, matrix in (("a", a), ("b", b)):
        torch.testing.assert_close(factors[name], orthogonal_factor(matrix[None])[0])


def test_settings_of_the_matrices_are_checked():
    with pytest.raises(config.AmplifyError, match="optimizer.kind"):
        config.resolve("tiny", None, {"optimizer.kind": "muon"})
    with pytest.raises(config.AmplifyError, match="optimizer.matrix_lr"):
        config.resolve("tiny", None, {"optimizer.matrix_lr": "0"})
