"""status, check and repair ask the nodes themselves, whatever way leads to them."""

from __future__ import annotations

import pytest

from cluster_remote.p2p.server import Mode
from tests.cli.ailing import empty, store
from tests.cli.command import cluster_remote, told
from tests.gateway.gateways import gateway_of
from tests.remote.testbed import Testbed, initremote, make_testbed
from tests.support.environment import Environment
from tests.support.slow import only_in_all
from tests.support.ssh import SshServer


def mend(testbed: Testbed, remote: str) -> None:
    """One node has lost a content, which the gateway does not know either: found, recorded and brought back."""
    keys = store(testbed, ["one", "two"])
    first = testbed.cluster.nodes[0]
    first.lose_object(keys["one"])
    (cluster,) = told(testbed.client, "status", remote, code=1)["clusters"]
    assert [(problem["kind"], problem["node"]) for problem in cluster["problems"]] == [("content-missing", first.uuid)]
    assert all(node["contact"]["uuid"] == node["uuid"] for node in cluster["nodes"])
    (finding,) = told(testbed.client, "check", remote, "--all", code=1)["findings"]
    assert (finding["key"], finding["missing"]) == (keys["one"], [first.uuid])
    assert told(testbed.client, "check", remote, "--all", "--fix")["recorded"] == 1
    (delivery,) = told(testbed.client, "repair", remote)["deliveries"]
    assert delivery["stored"] == [first.uuid]
    assert first.object_bytes(keys["one"]) == b"the content of one\n"
    assert told(testbed.client, "status", remote)["well"]


@pytest.mark.parametrize("way", ["unix", *only_in_all("tcp")])
def test_check_and_repair_work_through_our_gateway(own_testbed: Testbed, way: str) -> None:
    with gateway_of(own_testbed.cluster) as gateway:
        url = gateway.unix if way == "unix" else gateway.tcp
        token = {"CLUSTER_REMOTE_TOKEN": gateway.tokens[Mode.READ_WRITE]}
        initremote(own_testbed.client, "sock", f"url={url}", sameas=own_testbed.cluster.uuid, env=token)
        mend(own_testbed, "sock")
        # At the bare address the same is seen.
        assert cluster_remote(own_testbed.client, "status", url, env=token).out.count("reachable") == 3


@pytest.mark.slow
def test_check_and_repair_work_through_a_gateway_over_ssh(environment: Environment, ssh_server: SshServer) -> None:
    testbed = make_testbed(environment)
    initremote(
        testbed.client, "far", f"url={ssh_server.url(testbed.cluster.gateway.path)}", sameas=testbed.cluster.uuid
    )
    mend(testbed, "far")


def test_a_read_only_gateway_leaves_the_nodes_unchanged(own_testbed: Testbed) -> None:
    keys = store(own_testbed, ["one"])
    empty(own_testbed.cluster.nodes[0])
    with gateway_of(own_testbed.cluster) as gateway:
        token = {"CLUSTER_REMOTE_TOKEN": gateway.tokens[Mode.READ_ONLY]}
        initremote(own_testbed.client, "sock", f"url={gateway.unix}", sameas=own_testbed.cluster.uuid, env=token)
        said = told(own_testbed.client, "repair", "sock", code=1)
    assert said["deliveries"][0]["stored"] == []
    assert "read-only" in said["problems"][0]["words"]
    assert own_testbed.cluster.holders(keys["one"]) == [False, True, True]
