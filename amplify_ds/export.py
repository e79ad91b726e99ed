"""Export a model, or convert it to another layout: `python -m amplify_ds.export SOURCE OUT`."""

from __future__ import annotations

import argparse
from pathlib import Path

from amplify_ds.errors import command
from amplify_ds.shell import next_commands

DESCRIPTION = """\
Write a model folder for other programs, with tokenizer, model card and provenance. SOURCE is a run (its newest
checkpoint), a checkpoint, a model folder in any of these layouts, or a model on the Hugging Face hub.

  hf              the published chandar-lab/AMPLIFY layout. AutoModel, AutoModelForMaskedLM and AutoTokenizer load it
                  with torch and transformers alone (trust_remote_code=True)
  te              NVIDIA's TransformerEngine layout: q, k and v in one matrix, vocabulary padded to 32
  megatron        the Megatron-Core layout of NVIDIA's NeMo port
  megatron-local  the same for Megatron-Core without TransformerEngine

Conversions are exact: hf -> te -> hf, for example, returns the same bits. The folder is created only if its logits
agree with those of the source.

  python -m amplify_ds.export runs/first exported/first
  python -m amplify_ds.export runs/first exported/first-te --layout te
  python -m amplify_ds.export chandar-lab/AMPLIFY_120M exported/AMPLIFY_120M --layout megatron
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="amplify_ds.export", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE", help="run, checkpoint, model folder, or NAME[@REVISION] on the hub")
    parser.add_argument("target", metavar="OUT", type=Path, help="the folder to create; it must not exist")
    parser.add_argument(
        "--layout", choices=("hf", "te", "megatron", "megatron-local"), default="hf", help="(default: hf)"
    )
    arguments = parser.parse_args()
    from amplify_ds.hub.export import export

    source, difference = export(arguments.source, arguments.target, arguments.layout)
    step = f", step {source.history['step']}" if "step" in source.history else ""
    print(
        f"exported {source.path} ({source.layout} layout{step}) to {arguments.target} ({arguments.layout} layout); "
        f"the logits differ by at most {difference:.0e} of the largest"
    )
    if arguments.layout == "hf":
        print(f"next: AutoModelForMaskedLM.from_pretrained({str(arguments.target)!r}, trust_remote_code=True)")
    else:
        print(f"load {arguments.target / 'model.safetensors'} with NVIDIA's code for this layout")
        print(next_commands(("python", "-m", "amplify_ds.evaluate", "--model", arguments.target, "--data", "SHARDS")))
    return 0


if __name__ == "__main__":
    command(main)
