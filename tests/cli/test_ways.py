"""status, check and repair ask the nodes themselves, whatever way leads to them."""

from __future__ import annotations

import pytest

from cluster_remote.p2p.server import Mode
from tests.cli.ailing import empty, lose, store
from tests.cli.command import cluster_remote, told
from tests.gateway.served import gateway_of
from tests.remote.sites import Site, initremote, make_site
from tests.support.environment import Environment
from tests.support.slow import only_in_all
from tests.support.ssh import SshServer


def mend(site: Site, remote: str) -> None:
    """One node has lost a content, which the gateway does not know either: found, recorded and brought back."""
    keys = store(site, ["one", "two"])
    first = site.cluster.nodes[0]
    lose(first, keys["one"])
    (cluster,) = told(site.client, "status", remote, code=1)["clusters"]
    assert [(problem["kind"], problem["node"]) for problem in cluster["problems"]] == [("content-missing", first.uuid)]
    assert all(node["contact"]["uuid"] == node["uuid"] for node in cluster["nodes"])
    (finding,) = told(site.client, "check", remote, "--all", code=1)["findings"]
    assert (finding["key"], finding["missing"]) == (keys["one"], [first.uuid])
    assert told(site.client, "check", remote, "--all", "--fix")["recorded"] == 1
    (delivery,) = told(site.client, "repair", remote)["deliveries"]
    assert delivery["stored"] == [first.uuid]
    assert first.object_bytes(keys["one"]) == b"the content of one\n"
    assert told(site.client, "status", remote)["well"]


@pytest.mark.parametrize("way", ["unix", *only_in_all("tcp")])
def test_through_a_gateway_of_ours(own_site: Site, way: str) -> None:
    with gateway_of(own_site.cluster) as gateway:
        url = gateway.unix if way == "unix" else gateway.tcp
        token = {"CLUSTER_REMOTE_TOKEN": gateway.tokens[Mode.READ_WRITE]}
        initremote(own_site.client, "sock", f"url={url}", sameas=own_site.cluster.uuid, env=token)
        mend(own_site, "sock")
        # At the bare address the same is seen.
        assert cluster_remote(own_site.client, "status", url, env=token).out.count("reachable") == 3


@pytest.mark.slow
def test_through_a_gateway_over_ssh(environment: Environment, ssh_server: SshServer) -> None:
    site = make_site(environment)
    initremote(site.client, "far", f"url={ssh_server.url(site.cluster.gateway.path)}", sameas=site.cluster.uuid)
    mend(site, "far")


def test_a_gateway_that_may_only_be_read_leaves_the_nodes_as_they_are(own_site: Site) -> None:
    keys = store(own_site, ["one"])
    empty(own_site.cluster.nodes[0])
    with gateway_of(own_site.cluster) as gateway:
        token = {"CLUSTER_REMOTE_TOKEN": gateway.tokens[Mode.READ_ONLY]}
        initremote(own_site.client, "sock", f"url={gateway.unix}", sameas=own_site.cluster.uuid, env=token)
        said = told(own_site.client, "repair", "sock", code=1)
    assert said["deliveries"][0]["stored"] == []
    assert "read-only" in said["problems"][0]["words"]
    assert own_site.cluster.holders(keys["one"]) == [False, True, True]
