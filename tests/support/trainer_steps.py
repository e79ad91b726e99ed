"""One step and one evaluation of transformers' Trainer, with the same batch split into different micro batches.

    python trainer_steps.py DATA FOLDER '[micro batch, …]'

DATA: JSON, see test_trainer_loss.py. Several ranks share the batch. Rank 0 prints
[[training loss, gradient norm, evaluation loss], …].
"""

import json
import os
import sys
from unittest import mock

mock.patch.dict(
    sys.modules, {"datasets": None}
).start()  # too new for the oldest transformers, which would import it if it is installed
import torch
from torch import distributed
from transformers import Trainer, TrainingArguments

from amplify_ds.benchmarks.padded_model import ReferenceAMPLIFY
from amplify_ds.model.modeling_amplify import AMPLIFY, AMPLIFYConfig

with open(sys.argv[1]) as file:
    data = json.load(file)
folder, micro_batches = sys.argv[2], json.loads(sys.argv[3])
ranks = int(os.environ.get("WORLD_SIZE", 1))


def collate(proteins):
    longest = max(len(protein["input_ids"]) for protein in proteins)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    rows = [{**protein, "attention_mask": [1] * len(protein["input_ids"])} for protein in proteins]
    return {
        key: torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in rows])
        for key, value in fill.items()
    }


def step(micro_batch):
    torch.manual_seed(data["seed"])
    weights = ReferenceAMPLIFY(**data["shape"]).state_dict()
    model = AMPLIFY(AMPLIFYConfig(**data["shape"]))
    model.load_state_dict(weights)
    arguments = TrainingArguments(
        output_dir=folder,
        use_cpu=True,
        max_steps=1,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        seed=0,
        save_strategy="no",
        max_grad_norm=1e9,
        learning_rate=0,
        per_device_train_batch_size=micro_batch,
        per_device_eval_batch_size=micro_batch,
        average_tokens_across_devices=ranks > 1,
        gradient_accumulation_steps=len(data["train"]) // (micro_batch * ranks),
    )
    trainer = Trainer(
        model, arguments, data_collator=collate, train_dataset=data["train"], eval_dataset=data["validation"]
    )
    loss = trainer.train().training_loss
    norm = next(entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry)
    return [loss, norm, trainer.evaluate()["eval_loss"]]


results = [step(micro_batch) for micro_batch in micro_batches]
if int(os.environ.get("RANK", 0)) == 0:
    print(json.dumps(results))
if ranks > 1:  # Trainer leaves it open, and its threads may end the process with SIGABRT (pytorch issue 190489)
    distributed.destroy_process_group()
