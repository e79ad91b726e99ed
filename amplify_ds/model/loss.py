"""The loss of masked-language modelling, in the form that Hugging Face's Trainer needs.

Trainer splits a batch into micro batches and ranks. When it passes the number of labels of the whole batch, it expects
the sum over the part divided by that number, and adds up the results; a model that ignored the number would have its
gradient multiplied by the number of parts.

Depends on torch and transformers only: this file is part of every exported model folder.
"""

import torch
import torch.nn.functional as F
from transformers import __version__


def masked_lm_loss(logits, labels, num_items_in_batch=None):
    """Return the mean cross-entropy over labels other than -100, or its sum divided by `num_items_in_batch` when the
    logits are part of a larger batch with that many labels. logits […, V], labels […].
    """
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"labels {list(labels.shape)} do not fit logits {list(logits.shape)}")
    logits, labels = logits.float().flatten(0, -2), labels.to(logits.device).flatten()
    if num_items_in_batch is None:
        return F.cross_entropy(logits, labels)
    if torch.is_tensor(num_items_in_batch):  # one number; its shape depends on Trainer's version
        num_items_in_batch = num_items_in_batch.to(logits.device).reshape(())
    return F.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch


def accepts_loss_kwargs(model):
    """Return true: Trainer should pass `num_items_in_batch` and not rescale the loss."""
    return WhileTraining(model) if tuple(map(int, __version__.split(".")[:2])) < (4, 49) else True


class WhileTraining:
    """True while the model is in training mode.

    Trainer of transformers 4.48 multiplies the loss by the number of ranks whenever this is true. That is right in
    training, where `num_items_in_batch` counts the labels of all ranks, but wrong in evaluation, where it passes none.
    """

    def __init__(self, model):
        self.model = model

    def __bool__(self):
        return self.model.training
