"""A node that is cut off in the middle of training: the job ends, and goes on as if nothing had happened.

The file system is shared and stays so for the node that is cut off; a real one might hang there.
"""

import psutil
import pytest
from conftest import losses
from needs import needs_environment, needs_ip, needs_namespaces, needs_nodes
from nodes import namespace_nodes
from test_two_nodes import RunOnNodes, assert_same_bits

pytestmark = [needs_environment, needs_nodes, needs_ip, needs_namespaces]
needs_restarts = pytest.mark.skip(reason="needs --restarts")


@pytest.fixture
def nodes(tmp_path):
    with namespace_nodes(tmp_path, RECORD=str(tmp_path / "run.rows")) as nodes:
        yield nodes


def cut_off(run: RunOnNodes) -> None:
    """… once there is a checkpoint, and a step behind it."""
    run.wait_for_steps(5)
    run.nodes.cut_off()


def ended(run: RunOnNodes, node: int):
    return lambda: not run.nodes.processes(node)


def test_the_job_ends_and_the_same_command_continues_it(nodes, uninterrupted, shards, tmp_path):
    run = RunOnNodes(tmp_path, nodes, shards, watchdog__seconds=20)
    run.environment["PDSH_SSH_ARGS_APPEND"] += " -o ServerAliveInterval=1 -o ServerAliveCountMax=3"
    run.start()
    cut_off(run)
    assert run.end() in (69, 70), run.log.read_text()  # a node is lost, or the watchdog was first to see it
    assert "192.0.2.2: ssh exited with exit code 255" in run.log.read_text()
    assert len(losses(run.output)) < 10 and not (run.output / "result.json").exists()

    nodes.rejoin()
    run.start()
    assert run.end() == 0, run.log.read_text()
    assert_same_bits(run.output, uninterrupted)


@needs_restarts
def test_the_job_restarts_by_itself_when_the_node_is_back(nodes, uninterrupted, shards, tmp_path):
    """With the usual watchdog of ten minutes, and no options for ssh: the launch script has to notice."""
    run = RunOnNodes(tmp_path, nodes, shards, restart=("--restarts", "2"))
    run.start()
    cut_off(run)
    before = {process.pid for node in (0, 1) for process in nodes.processes(node)}
    run.wait_until(ended(run, 0))
    run.wait_until(ended(run, 1))  # on the node that is cut off, too: there they would disturb the next start
    nodes.rejoin()
    assert run.end() == 0, run.log.read_text()
    assert not [pid for pid in before if psutil.pid_exists(pid)]
    assert_same_bits(run.output, uninterrupted)


@needs_restarts
def test_the_job_goes_on_without_the_node(nodes, uninterrupted, shards, tmp_path):
    """One rank computes what two did, within rounding."""
    run = RunOnNodes(tmp_path, nodes, shards, restart=("--restarts", "2", "--drop-lost-nodes"))
    run.start()
    cut_off(run)
    assert run.end() == 0, run.log.read_text()
    assert run.read("result.json")["devices"] == 1
    assert losses(run.output) == pytest.approx(losses(uninterrupted), abs=1e-5)
