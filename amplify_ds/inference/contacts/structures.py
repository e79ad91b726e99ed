"""Read the sequence and the contacts of one protein chain from a structure file (PDB or mmCIF, plain or gzip).

The first model of a file is read. The sequence is that of the experiment (SEQRES, or the entity of an mmCIF file), so
residues without coordinates keep their positions. A modified residue is read as its parent (MSE is M), a residue
without a letter as X, which the model reads as <unk>. In a file without such a sequence, the sequence is that of the
residues in order; a jump in residue numbers counts as missing residues, each an X, only if no peptide bond joins the
neighbours (residues.py). Of alternatives, the one with the highest occupancy is used (sites.py).
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
# Names of protonation states in force fields; gemmi's table has only the names of the PDB.
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


def find(arguments: Iterable[str]) -> list[tuple[Path, str | None]]:
    """Return (file, chain or None) for each argument: FILE, FILE:CHAIN, or a folder, which is not searched deeper."""
    structures: list[tuple[Path, str | None]] = []
    for argument in arguments:
        path, chain = Path(argument), None
        if not path.exists() and ":" in argument:
            name, chain = argument.rsplit(":", 1)
            path = Path(name)
        if path.is_dir() and chain is None:
            files = sorted(x for x in path.iterdir() if x.name.lower().removesuffix(".gz").endswith(SUFFIXES))
            if not files:
                raise AmplifyError(
                    f"{path}: contains no structure; expected files ending in {', '.join(SUFFIXES)} (.gz)"
                )
            structures += [(file, None) for file in files]
        elif path.is_file():
            structures.append((path, chain))
        else:
            raise AmplifyError(f"{path}: there is no such file; expected a folder, FILE or FILE:CHAIN")
    return structures


def protein_name(path: Path, chain: str | None) -> str:
    """Return the name of the file without suffixes, followed by :CHAIN if a chain was given."""
    stem = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    return stem.rpartition(".")[0] + (f":{chain}" if chain else "")


def read_structure(path: Path, chain: str | None = None) -> tuple[str, np.ndarray]:
    """Return (sequence of n letters, contacts int8 [n, n]).

    Raises AmplifyError if the file is not a structure, or if it is not clear which residues belong to the protein.
    """
    try:
        structure = gemmi.read_structure(str(path))
        _keep_proteins(structure)
        structure.setup_entities()
        structure.assign_label_seq_id()
        return _sequence_and_contacts(path, structure, chain)
    except (ValueError, RuntimeError, OSError, IndexError) as error:  # gemmi fails late on names that are not UTF-8
        raise AmplifyError(f"{path}: cannot be read as PDB or mmCIF: {error}") from None


def _keep_proteins(structure: gemmi.Structure) -> None:
    """Remove all models but the first, and all residues that are not part of a protein.

    Without this, gemmi would end a chain at the first ligand.
    """
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
    chain = _choose_chain(path, structure, name)
    where = f"{path}: chain {chain.name}" if chain.name else str(path)
    entity = structure.get_entity_of(chain.get_polymer())
    chain_sites = sites(chain, where)
    if entity is not None and entity.full_sequence:
        indices = [_index_in_sequence(where, site, entity.full_sequence) for site in chain_sites]
        names = [gemmi.Entity.first_mon(item) for item in entity.full_sequence]
    else:
        gaps = [missing_between(before, after, where) for before, after in pairwise(chain_sites)]
        if sum(gaps) > max(LONGEST_GAP, len(chain_sites)):
            raise AmplifyError(
                f"{where}: according to the residue numbers more residues are missing ({sum(gaps):,}) than present "
                f"({len(chain_sites):,}); add the sequence (SEQRES, or _entity_poly_seq in mmCIF), or renumber them"
            )
        indices = np.cumsum([0, *(gap + 1 for gap in gaps)]).tolist()
        names = ["UNK"] * (indices[-1] + 1)
    if len(set(indices)) < len(indices):
        raise AmplifyError(f"{where}: several residues have the same position in the sequence; renumber them")
    for site, index in zip(chain_sites, indices):
        names[index] = site.residue.name
    parents = {x.res_id.name: x.parent_comp_id for x in structure.mod_residues}
    letters = [_letter(name, parents) for name in names]
    coordinates = np.full((len(names), 3), np.nan)
    for site, index in zip(chain_sites, indices):
        if (atom := site.coordinates("CA" if letters[index] == "G" else "CB")) is not None:
            coordinates[index] = atom
    if np.isnan(coordinates).all():
        raise AmplifyError(f"{where}: no residue has a C-beta; contacts cannot be computed from C-alphas alone")
    return "".join(letters), contacts_of(coordinates)


def _choose_chain(path: Path, structure: gemmi.Structure, name: str | None) -> gemmi.Chain:
    """Return the protein chain `name`, or the only protein chain if `name` is None."""
    chains = list(structure[0]) if len(structure) else []
    by_name = {chain.name: chain for chain in chains if chain.get_polymer().check_polymer_type() in _PEPTIDES}
    if not by_name:
        raise AmplifyError(f"{path}: contains no protein chain with coordinates")
    if name is None and len(by_name) > 1:
        raise AmplifyError(
            f"{path}: has the protein chains {', '.join(by_name)}; choose one: {path}:{next(iter(by_name))}"
        )
    if name not in (None, *by_name):
        raise AmplifyError(f"{path}: has no protein chain {name!r}; it has {', '.join(by_name)}")
    chain = by_name[next(iter(by_name)) if name is None else name]  # a name can be empty
    if len(parts := {residue.subchain for residue in chain}) > 1:
        raise AmplifyError(
            f"{path}: {len(parts)} proteins are named chain {chain.name} (label_asym_id {', '.join(sorted(parts))}); "
            "give each chain a different name"
        )
    return chain


def _index_in_sequence(where: str, site: Site, sequence: list[str]) -> int:
    """Return the index of a site in the sequence of its chain."""
    number = site.residue.label_seq
    names = {residue.name for residue in site.residues}
    if number is None or not 1 <= number <= len(sequence) or not names & set(sequence[number - 1].split(",")):
        raise AmplifyError(
            f"{where}: {site} does not match the sequence of its chain (SEQRES, or the entity of an mmCIF file); "
            "correct or remove that sequence"
        )
    return number - 1


def _letter(name: str, parents: dict[str, str]) -> str:
    """Return the one-letter code of a residue, of its parent if it is modified, or X."""
    for known in (name, _FORCE_FIELDS.get(name), parents.get(name)):
        if known and (letter := gemmi.find_tabulated_residue(known).one_letter_code.strip()):
            return letter.upper()
    return "X"
