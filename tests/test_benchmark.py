"""The benchmark of data preparation runs and prints its table; its figures are not tested."""

from conftest import python


def test_prep_prints_the_table(tmp_path):
    result = python("-m", "amplify_ds.benchmark", "prep", "--residues", "1e6", "--directory", tmp_path)
    assert result.returncode == 0, result.stderr
    for name in ("limit", "finished shards", "datasets.map", "rows full", "peak memory"):
        assert name in result.stdout
    assert not list(tmp_path.iterdir())
