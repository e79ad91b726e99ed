"""Validation proteins and their relatives at known distances."""

import random
from pathlib import Path

from tests.support.building import STANDARD, write_fasta


def mutated(sequence: str, share: float, draw: random.Random) -> str:
    letters = list(sequence)
    for place in draw.sample(range(len(letters)), round(share * len(letters))):
        letters[place] = draw.choice([letter for letter in STANDARD if letter != letters[place]])
    return "".join(letters)


def write(place: Path) -> dict[str, list[str]]:
    """Validation proteins and their relatives at known distances, among unrelated proteins."""
    draw = random.Random(0)

    def new() -> str:
        return "".join(draw.choices(STANDARD, k=200))

    held_out = [new() for _ in range(5)]
    found = {
        "held_out": held_out,
        "near": [mutated(sequence, 0.05, draw) for sequence in held_out],
        "inside": ["".join([new(), mutated(held_out[0], 0.04, draw), new()])],
        "part": [held_out[1][20:120]],
        "chain": [f"{new()}|{mutated(held_out[2], 0.03, draw)}"],
        "far": [mutated(sequence, 0.2, draw) for sequence in held_out],
        "others": [new() for _ in range(60)],
    }
    write_fasta(place / "valid.fasta", held_out)
    write_fasta(place / "train.fasta", [text for name in found if name != "held_out" for text in found[name]])
    return found
