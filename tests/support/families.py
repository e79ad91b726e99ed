"""Write validation proteins and their relatives at known distances."""

import random
from pathlib import Path

from tests.support.building import STANDARD, write_fasta


def mutated(sequence: str, share: float, rng: random.Random) -> str:
    letters = list(sequence)
    for index in rng.sample(range(len(letters)), round(share * len(letters))):
        letters[index] = rng.choice([letter for letter in STANDARD if letter != letters[index]])
    return "".join(letters)


def write(folder: Path) -> dict[str, list[str]]:
    """Write valid.fasta and train.fasta (relatives and unrelated proteins); return {group: sequences}."""
    rng = random.Random(0)

    def new() -> str:
        return "".join(rng.choices(STANDARD, k=200))

    held_out = [new() for _ in range(5)]
    groups = {
        "held_out": held_out,
        "near": [mutated(sequence, 0.05, rng) for sequence in held_out],
        "inside": ["".join([new(), mutated(held_out[0], 0.04, rng), new()])],
        "part": [held_out[1][20:120]],
        "chain": [f"{new()}|{mutated(held_out[2], 0.03, rng)}"],
        "far": [mutated(sequence, 0.2, rng) for sequence in held_out],
        "others": [new() for _ in range(60)],
    }
    write_fasta(folder / "valid.fasta", held_out)
    write_fasta(folder / "train.fasta", [text for name in groups if name != "held_out" for text in groups[name]])
    return groups
