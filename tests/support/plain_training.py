"""The ten steps of a small run as a plain PyTorch loop with the independent reference model, to compare runs with."""

import itertools

import torch
from torch.nn import functional as F

from amplify_ds import config
from amplify_ds.benchmarks.padded_model import ReferenceAMPLIFY
from amplify_ds.data.loader import BatchSplit, TrainingBatches
from amplify_ds.data.mixture import Mixture, Source
from amplify_ds.data.shards import Shards
from amplify_ds.model.modeling_amplify import AMPLIFY, AMPLIFYConfig
from amplify_ds.training.schedule import learning_rate
from tests.support.training import SMALL


def plain_adamw(model, settings):
    return torch.optim.AdamW(model.parameters(), settings.lr, settings.betas, settings.eps, settings.weight_decay)


def plain_training(shards, skipped=(), skips=(), optimizer_of=plain_adamw):
    """Return losses, gradient norms and final weights of ten steps on padded proteins in one process.

    skipped: numbers of batches that are not used. skips: rows that are not used, as in data/skips.py.
    """
    run = config.resolve("tiny", None, SMALL)
    torch.manual_seed(run.training.seed)
    model = ReferenceAMPLIFY(**run.model.model_dump())
    torch.manual_seed(run.training.seed)
    model.load_state_dict(AMPLIFY(AMPLIFYConfig(**run.model.model_dump())).state_dict())  # same initial weights
    settings = run.optimizer
    optimizer = optimizer_of(model, settings)
    mixture = Mixture([Source("train", 1, Shards(shards["train"]))])
    batches = TrainingBatches(mixture, BatchSplit(4, 4, 1, 0, 1), 0, **run.masking.model_dump(), skips=skips)
    steps = []
    order = (number for number in itertools.count() if number not in skipped)
    for step, number in zip(range(run.training.steps), order):
        batch = batches[number]
        bounds = batch.cu_seqlens.unique().tolist()
        segments = [batch.input_ids[a:b] for a, b in zip(bounds, bounds[1:])]
        ids = torch.nn.utils.rnn.pad_sequence(segments, batch_first=True)
        mask = torch.arange(ids.shape[1]) < torch.tensor([len(s) for s in segments])[:, None]
        # An unused slot of the last row counts as a target with loss 0: see data/masking.py.
        logits = model(ids, mask)[mask][batch.masked_positions]
        loss = F.cross_entropy(logits, batch.labels, reduction="sum") / len(batch.labels)
        optimizer.param_groups[0]["lr"] = learning_rate(step, settings)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clipping)
        optimizer.step()
        steps.append((loss.item() * len(batch.labels) / batch.targets, norm.item()))
    return *zip(*steps), model.state_dict()
