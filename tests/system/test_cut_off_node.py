"""A node that is cut off during training: the job ends, and continues with the same result.

The node that is cut off keeps the shared file system; in a cluster the file system might hang there.
"""

import psutil
import pytest

from tests.support.needs import needs_environment, needs_ip, needs_namespaces, needs_nodes
from tests.support.nodes import NamespaceNodes, namespace_nodes
from tests.support.run_on_nodes import RunOnNodes, assert_same_bits_and_rows
from tests.support.training import losses

pytestmark = [pytest.mark.slow, needs_environment, needs_nodes, needs_ip, needs_namespaces]


@pytest.fixture
def nodes(tmp_path):
    with namespace_nodes(tmp_path, RECORD=str(tmp_path / "run.rows")) as nodes:
        yield nodes


def cut_off(run: RunOnNodes) -> None:
    """Cut off the second node, once there is a checkpoint and a step after it."""
    run.wait_for_steps(5)
    assert isinstance(run.nodes, NamespaceNodes)
    run.nodes.cut_off()


def ended(run: RunOnNodes, node: int):
    """Return the condition that no process of the run is left on a node."""
    return lambda: not run.nodes.processes(node)


def test_the_job_ends_and_starts_again_when_the_node_is_back(nodes, uninterrupted, shards, tmp_path):
    """The launch script must notice it, not the watchdog, whose limit is ten minutes."""
    run = RunOnNodes(tmp_path, nodes, shards, restart=("--restarts", "2"))
    run.start()
    cut_off(run)
    before = {process.pid for node in (0, 1) for process in nodes.processes(node)}
    run.wait_until(lambda: "exit code 69; restart 1 of 2" in run.log.read_text())
    run.wait_until(ended(run, 0))
    run.wait_until(ended(run, 1))  # also on the node that is cut off, where they would disturb the next start
    assert "error: the connection to 192.0.2.2 or the ranks there have ended" in run.log.read_text()
    nodes.rejoin()
    assert run.end() == 0, run.log.read_text()
    assert not [pid for pid in before if psutil.pid_exists(pid)]
    assert_same_bits_and_rows(run.output, uninterrupted)


def test_the_job_continues_without_the_node(nodes, uninterrupted, shards, tmp_path):
    """One rank computes the same as two, within rounding."""
    run = RunOnNodes(tmp_path, nodes, shards, restart=("--restarts", "2", "--drop-lost-nodes"))
    run.start()
    cut_off(run)
    assert run.end() == 0, run.log.read_text()
    assert run.read("result.json")["devices"] == 1
    assert losses(run.output) == pytest.approx(losses(uninterrupted), abs=1e-5)
