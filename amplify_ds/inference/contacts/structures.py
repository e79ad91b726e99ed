"""Structure files (PDB, mmCIF; plain or gzip) -> the sequence and the contacts of one protein chain.

The first model of a file is read. The sequence is that of the experiment (SEQRES, or the entity of an mmCIF file), so
that residues without coordinates keep their places; a modified residue counts as its parent (MSE is M), what has no
letter as X, which the model reads as <unk>. A file without such a sequence gives that of its residues in order, with an
X for each number that is left out. Of alternative places of an atom the first counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import gemmi
import numpy as np

from amplify_ds.errors import AmplifyError
from amplify_ds.inference.contacts.targets import contacts_of

SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif")
_PEPTIDES = (gemmi.PolymerType.PeptideL, gemmi.PolymerType.PeptideD)


def find(words: Iterable[str]) -> list[tuple[Path, str | None]]:
    """(file, chain or None) of each word: a folder (the structure files right in it), FILE or FILE:CHAIN."""
    found = []
    for word in words:
        path, chain = Path(word), None
        if not path.exists() and ":" in word:
            name, chain = word.rsplit(":", 1)
            path = Path(name)
        if path.is_dir() and chain is None:
            files = sorted(x for x in path.iterdir() if x.name.lower().removesuffix(".gz").endswith(SUFFIXES))
            if not files:
                raise AmplifyError(f"{path}: holds no structure; expected files ending in {', '.join(SUFFIXES)} (.gz)")
            found += [(file, None) for file in files]
        elif path.is_file():
            found.append((path, chain))
        else:
            raise AmplifyError(f"{path}: there is no such file; expected a folder, FILE or FILE:CHAIN")
    return found


def named(path: Path, chain: str | None) -> str:
    """What the protein is called: the name of its file without suffixes, and its chain if that was chosen."""
    stem = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    return stem.rpartition(".")[0] + (f":{chain}" if chain else "")


def read_structure(path: Path, chain: str | None = None) -> tuple[str, np.ndarray]:
    """(sequence of n letters, contacts int8 [n, n]). Raises AmplifyError for what is no structure of one protein."""
    try:
        structure = gemmi.read_structure(str(path))
        structure.setup_entities()
        structure.assign_label_seq_id()
        return _sequence_and_contacts(path, structure, chain)
    except (ValueError, RuntimeError, OSError, IndexError) as error:  # names that are no text fail when they are used
        raise AmplifyError(f"{path}: cannot be read as PDB or mmCIF: {error}") from None


def _sequence_and_contacts(path: Path, structure: gemmi.Structure, chain: str | None) -> tuple[str, np.ndarray]:
    polymer = _polymer(path, structure, chain)
    entity = structure.get_entity_of(polymer)
    residues = list(polymer.first_conformer())
    if entity is not None and entity.full_sequence:
        names = [gemmi.Entity.first_mon(item) for item in entity.full_sequence]
        places = [_place(path, residue, entity.full_sequence) for residue in residues]
    else:
        names, places = _by_numbers(residues)
    if len(set(places)) < len(places):
        raise AmplifyError(f"{path}: several residues stand at the same place of the sequence; mend its numbers")
    coordinates = np.full((len(names), 3), np.nan)
    for residue, place in zip(residues, places):
        atom = residue.find_atom("CA" if residue.name == "GLY" else "CB", "*")
        if atom is not None:
            coordinates[place] = atom.pos.tolist()
    if np.isnan(coordinates).all():
        raise AmplifyError(f"{path}: no residue has a C-beta; contacts cannot be told from C-alphas alone")
    return "".join(map(_letter, names)), contacts_of(coordinates)


def _polymer(path: Path, structure: gemmi.Structure, chain: str | None) -> gemmi.ResidueSpan:
    """The residues of the chain asked for, or of the only protein chain."""
    found = {}
    for part in structure[0] if len(structure) else ():
        polymer = part.get_polymer()
        if len(polymer) and polymer.check_polymer_type() in _PEPTIDES:
            found[part.name] = polymer
    if not found:
        raise AmplifyError(f"{path}: holds no protein chain with coordinates")
    if chain is None and len(found) > 1:
        raise AmplifyError(f"{path}: has the protein chains {', '.join(found)}; choose one: {path}:{next(iter(found))}")
    if chain is not None and chain not in found:
        raise AmplifyError(f"{path}: has no protein chain {chain!r}; it has {', '.join(found)}")
    return found[chain or next(iter(found))]


def _place(path: Path, residue: gemmi.Residue, sequence: list[str]) -> int:
    """Where a residue stands in the sequence, from 0."""
    number = residue.label_seq
    if number is None or not 1 <= number <= len(sequence) or residue.name not in sequence[number - 1].split(","):
        raise AmplifyError(
            f"{path}: {residue.name} {residue.seqid} has no place in the sequence of its chain (SEQRES, or the "
            "entity of an mmCIF file); mend or remove that sequence"
        )
    return number - 1


def _by_numbers(residues: list[gemmi.Residue]) -> tuple[list[str], list[int]]:
    """(names, places): residues in order, UNK where numbers are left out."""
    names, places = [], []
    for before, residue in zip([None, *residues], residues):
        missing = 0 if before is None else max(0, residue.seqid.num - before.seqid.num - 1)
        names += [*["UNK"] * missing, residue.name]
        places.append(len(names) - 1)
    return names, places


def _letter(name: str) -> str:
    letter = gemmi.find_tabulated_residue(name).one_letter_code.strip().upper()
    return letter or "X"
