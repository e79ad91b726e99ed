"""Structure files (PDB, mmCIF; plain or gzip) -> the sequence and the contacts of one protein chain.

The first model of a file is read. The sequence is that of the experiment (SEQRES, or the entity of an mmCIF file), so
that residues without coordinates keep their places; a modified residue counts as its parent (MSE is M), what has no
letter as X, which the model reads as <unk>. A file without such a sequence gives that of its residues in order. There,
numbers that skip are missing residues, an X each, only where no peptide bond joins the neighbors (residues.py). Of
alternatives the one with the highest occupancy counts (sites.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import gemmi
import numpy as np

from amplify_ds.errors import AmplifyError
from amplify_ds.inference.contacts.residues import LONGEST_GAP, missing_between, protein_part
from amplify_ds.inference.contacts.sites import Site, sites
from amplify_ds.inference.contacts.targets import contacts_of

SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif")
_PEPTIDES = (gemmi.PolymerType.PeptideL, gemmi.PolymerType.PeptideD)
# Names that force fields give to states of protonation; the table of gemmi has those of the PDB.
_FORCE_FIELDS = {
    "HID": "HIS",
    "HIE": "HIS",
    "HIP": "HIS",
    "HSD": "HIS",
    "HSE": "HIS",
    "HSP": "HIS",
    "CYX": "CYS",
    "CYM": "CYS",
    "ASH": "ASP",
    "GLH": "GLU",
    "LYN": "LYS",
}


def find(words: Iterable[str]) -> list[tuple[Path, str | None]]:
    """(file, chain or None) of each word: a folder (the structure files right in it), FILE or FILE:CHAIN."""
    found: list[tuple[Path, str | None]] = []
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
        _keep_proteins(structure)
        structure.setup_entities()
        structure.assign_label_seq_id()
        return _sequence_and_contacts(path, structure, chain)
    except (ValueError, RuntimeError, OSError, IndexError) as error:  # names that are no text fail when they are used
        raise AmplifyError(f"{path}: cannot be read as PDB or mmCIF: {error}") from None


def _keep_proteins(structure: gemmi.Structure) -> None:
    """Leaves the first model, and in it the residues of proteins. gemmi would end a chain at the first ligand."""
    del structure[1:]
    sequences = {name: set(x.full_sequence) for x in structure.entities for name in (x.name, *x.subchains)}
    for chain in structure[0] if len(structure) else ():
        names = sequences.get(chain.name, set()).union(*(sequences.get(x.subchain, ()) for x in chain))
        kept = [residue.clone() for residue in protein_part(chain, names)]
        del chain[:]
        for residue in kept:
            residue.entity_type = gemmi.EntityType.Polymer
            chain.add_residue(residue)


def _sequence_and_contacts(path: Path, structure: gemmi.Structure, name: str | None) -> tuple[str, np.ndarray]:
    chain = _chosen(path, structure, name)
    where = f"{path}: chain {chain.name}" if chain.name else str(path)
    entity = structure.get_entity_of(chain.get_polymer())
    found = sites(chain, where)
    if entity is not None and entity.full_sequence:
        places = [_place(where, site, entity.full_sequence) for site in found]
        names = [gemmi.Entity.first_mon(item) for item in entity.full_sequence]
    else:
        gaps = [missing_between(before, after, where) for before, after in pairwise(found)]
        if sum(gaps) > max(LONGEST_GAP, len(found)):
            raise AmplifyError(
                f"{where}: by its numbers more residues are missing ({sum(gaps):,}) than there are ({len(found):,}); "
                "add the sequence (SEQRES, or _entity_poly_seq in mmCIF), or renumber them"
            )
        places = np.cumsum([0, *(gap + 1 for gap in gaps)]).tolist()
        names = ["UNK"] * (places[-1] + 1)
    if len(set(places)) < len(places):
        raise AmplifyError(f"{where}: several residues have the same place in the sequence; renumber them")
    for site, place in zip(found, places):
        names[place] = site.residue.name
    parents = {x.res_id.name: x.parent_comp_id for x in structure.mod_residues}
    letters = [_letter(name, parents) for name in names]
    coordinates = np.full((len(names), 3), np.nan)
    for site, place in zip(found, places):
        if (atom := site.place("CA" if letters[place] == "G" else "CB")) is not None:
            coordinates[place] = atom
    if np.isnan(coordinates).all():
        raise AmplifyError(f"{where}: no residue has a C-beta; contacts cannot be told from C-alphas alone")
    return "".join(letters), contacts_of(coordinates)


def _chosen(path: Path, structure: gemmi.Structure, name: str | None) -> gemmi.Chain:
    """The chain asked for, or the only protein chain."""
    chains = list(structure[0]) if len(structure) else []
    found = {chain.name: chain for chain in chains if chain.get_polymer().check_polymer_type() in _PEPTIDES}
    if not found:
        raise AmplifyError(f"{path}: holds no protein chain with coordinates")
    if name is None and len(found) > 1:
        raise AmplifyError(f"{path}: has the protein chains {', '.join(found)}; choose one: {path}:{next(iter(found))}")
    if name not in (None, *found):
        raise AmplifyError(f"{path}: has no protein chain {name!r}; it has {', '.join(found)}")
    chain = found[next(iter(found)) if name is None else name]  # a name can be empty
    if len(parts := {residue.subchain for residue in chain}) > 1:
        raise AmplifyError(
            f"{path}: {len(parts)} proteins are named chain {chain.name} (label_asym_id {', '.join(sorted(parts))}); "
            "give each a name of its own"
        )
    return chain


def _place(where: str, site: Site, sequence: list[str]) -> int:
    """Where a residue stands in the sequence, from 0."""
    number = site.residue.label_seq
    names = {residue.name for residue in site.residues}
    if number is None or not 1 <= number <= len(sequence) or not names & set(sequence[number - 1].split(",")):
        raise AmplifyError(
            f"{where}: {site} has no place in the sequence of its chain (SEQRES, or the entity of an mmCIF file); "
            "correct or remove that sequence"
        )
    return number - 1


def _letter(name: str, parents: dict[str, str]) -> str:
    for known in (name, _FORCE_FIELDS.get(name), parents.get(name)):
        if known and (letter := gemmi.find_tabulated_residue(known).one_letter_code.strip()):
            return letter.upper()
    return "X"
