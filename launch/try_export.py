"""Load an exported model as a stranger would, with torch and transformers alone: `python launch/try_export.py FOLDER`.

Prints the embedding shape of a real protein and the five most likely residues at a masked place.
"""

import argparse
import sys

sys.modules["amplify_ds"] = None  # from here on `import amplify_ds` fails: the folder must do without

# Human insulin, UniProt P01308 (INS_HUMAN).
INSULIN = (
    "MALWMRLLPLLALLALWGPDPAAAFVNQHLCGSHLVEALYLVCGERGFFYTPKTRREAEDLQVGQVELGGGPGAGSLQPLALEGSLQKRGIVEQCCTSICSLYQLENYCN"
)
PLACE = 30  # counted from 0: a cysteine of the B chain


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a folder written by amplify_ds.export")
    folder = parser.parse_args().folder

    import torch
    from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    encoder = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()
    masked = INSULIN[:PLACE] + "<mask>" + INSULIN[PLACE + 1 :]
    with torch.no_grad():
        embeddings = encoder(**tokenizer(INSULIN, return_tensors="pt")).last_hidden_state
        logits = model(**tokenizer(masked, return_tensors="pt")).logits
    print(f"human insulin, {len(INSULIN)} residues with <bos> and <eos>: embeddings {tuple(embeddings.shape)}")
    probabilities = logits[0, PLACE + 1].softmax(-1)
    best = [f"{tokenizer.convert_ids_to_tokens(int(i))} {probabilities[i]:.1%}" for i in probabilities.topk(5).indices]
    print(f"residue {PLACE + 1} masked (it is {INSULIN[PLACE]}): {', '.join(best)}")


if __name__ == "__main__":
    main()
