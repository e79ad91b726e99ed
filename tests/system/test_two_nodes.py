"""Two nodes with a hostfile, ssh and pdsh train like two ranks of one node, and no process remains after a stop."""

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


def test_stage_3_on_two_nodes_is_close_to_two_ranks_of_one_node(nodes, uninterrupted, shards, tmp_path):
    run = RunOnNodes(tmp_path, nodes, shards, stage=3)
    run.start()
    assert run.end() == 0, run.log.read_text()
    of_run, expected_losses = losses(run.output), losses(uninterrupted)
    assert of_run == pytest.approx(expected_losses, abs=1e-6) and len(of_run) == 10
    weights, expected = final_tensors(run.output), final_tensors(uninterrupted)
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5, msg=name)
    assert sorted(record(run.output)) == sorted(record(uninterrupted))


@pytest.mark.parametrize("victim", ["launcher", "ssh session"])
def test_a_run_killed_and_stopped_on_two_nodes_continues_to_the_same_bits(
    victim, nodes, uninterrupted, shards, tmp_path
):
    run = RunOnNodes(tmp_path, nodes, shards)
    kill = {"launcher": lambda: run.launcher(1).kill(), "ssh session": lambda: nodes.hang_up(1)}
    run.start()
    run.wait_for_steps(2)
    kill[victim]()
    assert run.end() not in (0, 75), f"{victim}: {run.log.read_text()}"
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
