"""CITATION.cff has the keys required by format version 1.2.0 and agrees with the package."""

import re

import pytest
import yaml

import amplify_ds
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def citation():
    return yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_required_keys(citation):
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0" and citation["authors"] == [{"name": "The amplify_ds contributors"}]


def test_name_version_and_licence_match_the_package(citation):
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^version = \{ attr = "amplify_ds.__version__" \}$', project, re.M)
    assert citation["version"] == amplify_ds.__version__
    for key, name in (("title", "name"), ("license", "license")):
        assert f'\n{name} = "{citation[key]}"\n' in project


def test_the_paper_is_the_one_in_the_readme(citation):
    [paper] = citation["references"]
    assert {"type", "title", "authors"} <= paper.keys()
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert paper["title"] in readme and paper["doi"].removeprefix("10.1101/") in readme
    assert paper["authors"][0] == {"given-names": "Quentin", "family-names": "Fournier"}
    assert all(author.keys() >= {"given-names", "family-names"} for author in paper["authors"])
