"""Two nodes behind a hostfile, ssh and pdsh train as two ranks of one node; stopped or killed, nothing stays behind."""

import pytest
import torch

from amplify_ds.training import checkpoint
from tests.support.needs import needs_environment, needs_nodes
from tests.support.nodes import loopback_nodes
from tests.support.run_on_nodes import RunOnNodes, assert_same_bits_and_rows, record
from tests.support.training import final_tensors, losses

pytestmark = [pytest.mark.slow, needs_environment, needs_nodes]


@pytest.fixture
def nodes(tmp_path):
    with loopback_nodes(tmp_path, RECORD=str(tmp_path / "run.rows")) as nodes:
        yield nodes


def test_at_stage_3_two_nodes_compute_what_two_ranks_of_one_do(nodes, uninterrupted, shards, tmp_path):
    run = RunOnNodes(tmp_path, nodes, shards, stage=3)
    run.start()
    assert run.end() == 0, run.log.read_text()
    ours, theirs = losses(run.output), losses(uninterrupted)
    assert ours == pytest.approx(theirs, abs=1e-6) and len(ours) == 10
    weights, expected = final_tensors(run.output), final_tensors(uninterrupted)
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5, msg=name)
    assert sorted(record(run.output)) == sorted(record(uninterrupted))


@pytest.mark.parametrize("way", ["launcher", "ssh session"])
def test_killed_and_stopped_on_two_nodes_it_ends_with_the_same_bits(way, nodes, uninterrupted, shards, tmp_path):
    run = RunOnNodes(tmp_path, nodes, shards)
    ways = {"launcher": lambda: run.launcher(1).kill(), "ssh session": lambda: nodes.hang_up(1)}
    run.start()
    run.wait_for_steps(2)
    ways[way]()
    assert run.end() not in (0, 75), f"{way}: {run.log.read_text()}"
    assert not (run.output / "result.json").exists() and not (run.output / "stopped.json").exists()

    run.start()
    run.wait_for_steps(1)
    run.script.terminate()
    assert run.end() == 75, run.log.read_text()
    stopped, newest = run.read("stopped.json"), checkpoint.newest(run.output)
    assert stopped["reason"] == "SIGTERM" and stopped["step"] == newest.step < 10

    run.start()
    assert run.end() == 0, run.log.read_text()
    assert_same_bits_and_rows(run.output, uninterrupted)
