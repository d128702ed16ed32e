"""The nodes of a cluster and the way to each, from any configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.annex.errors import NotInitialised
from cluster_remote.annex.gitconfig import GitConfig
from cluster_remote.cluster.membership import (
    Direct,
    Membership,
    NoCluster,
    Proxied,
    Way,
    chosen_cluster,
    cost_of,
    membership,
    special_settings,
    way_to,
)
from cluster_remote.cluster.throttling import Rates
from cluster_remote.cluster.wrapping import Failover, LocalReads
from cluster_remote.p2p.client import StreamSession
from cluster_remote.p2p.errors import SessionError
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.session import Session
from cluster_remote.transport.address import BadAddress, Directory, Http, P2pAnnex, Ssh, Tor
from cluster_remote.transport.opening import Caller
from cluster_remote.transport.process import ProcessTransport
from tests.cluster.fakes import CLUSTER, Log, uuid

pytestmark = pytest.mark.anyio

OWN, OTHER_CLUSTER = uuid(40), UUID("ac111111-1111-8111-8111-111111111111")
PLACE = Path("/srv/gateway")
CALLER = Caller(OWN, timeout=5.0)


def config(*lines: str) -> GitConfig:
    """Each line is `name=value`."""
    always = (f"annex.uuid={OWN}", f"annex.cluster.mycluster={CLUSTER}")
    return GitConfig.parse(b"".join(line.replace("=", "\n", 1).encode() + b"\0" for line in (*always, *lines)))


# A special remote is a way to its repository only if remote.log knows it.
BUCKET = f"{uuid(2)} type=S3 name=bucket timestamp=1s\n"


def remote(name: str, number: int, url: str | None, *more: str, cluster: str | None = "mycluster") -> list[str]:
    settings = [f"annex-uuid={uuid(number)}", *more]
    settings += [] if url is None else [f"url={url}"]
    settings += [] if cluster is None else [f"annex-cluster-node={cluster}"]
    return [f"remote.{name}.{setting}" for setting in settings]


def logs(nodes: list[int], **files: str) -> BranchLogs:
    listed = " ".join(uuid(number).text for number in nodes)
    written = {"cluster.log": f"1s {CLUSTER} {listed}\n"}
    written |= {name.replace("_", "-") + ".log": text for name, text in files.items()}
    return BranchLogs({name: text.encode() for name, text in written.items()})


def names(found: Membership) -> list[str]:
    return [member.name for member in found.members]


def test_nodes_are_the_repositories_in_cluster_log_that_have_remotes() -> None:
    found = membership(
        config(
            *remote("disk1", 1, "/disk1"),
            *remote("only-configured", 2, "/disk2"),
            *remote("only-logged", 3, "/disk3", cluster=None),
            *remote("of-another-too", 5, "/disk5", cluster="elsewhere  mycluster"),
            *remote("ignored", 6, "/disk6", "annex-ignore=true"),
            *remote("ours", 7, "/disk7", "annex-externaltype=cluster"),
            *remote("proxied", 8, None),
            "remote.without-uuid.annex-cluster-node=mycluster",
        ),
        logs([1, 3, 5, 6, 7, 8, 9], uuid=f"{uuid(1)} first disk (attic) timestamp=1s\n"),
        PLACE,
    )
    assert names(found) == ["disk1", "of-another-too"]
    assert [member.description for member in found.members] == ["first disk (attic)", ""]
    assert (found.cluster, found.name, found.own) == (CLUSTER, "mycluster", OWN)
    assert set(found.missing) == {uuid(3), uuid(6), uuid(7), uuid(8), uuid(9)}


def test_where_no_node_is_configured_all_that_the_log_lists_are_used() -> None:
    """As in a clone in which the remotes are enabled. Any remote for a node that is configured will do."""
    lines = [*remote("a", 1, "/a", cluster=None), *remote("b", 2, "/b", cluster=None)]
    assert names(membership(config(*lines), logs([1, 2, 3]), PLACE)) == ["a", "b"]
    one = [*lines, *remote("c", 1, "/c")]
    found = membership(config(*one), logs([1, 2, 3]), PLACE)
    assert [[each.name for each in member.remotes] for member in found.members] == [["a", "c"]]


def test_a_remote_that_enabled_itself_takes_the_place_of_no_node() -> None:
    """The git-annex branch decides on its UUID and its cost."""
    evil = ("annex-verified=automatic", "annex-cost=1")
    special = f"{uuid(1)} type=S3 name=evil timestamp=1s\n{uuid(2)} type=S3 name=bucket timestamp=1s\n"
    lines = [
        *remote("disk1", 1, "/disk1", cluster=None),
        *remote("evil", 1, None, *evil, cluster=None),
        *remote("bucket", 2, None, *evil, cluster=None),
    ]
    found = membership(config(*lines), logs([1, 2], remote=special), PLACE)
    assert [[each.name for each in member.remotes] for member in found.members] == [["disk1"]]
    assert set(found.missing) == {uuid(2)}
    # Only git-annex decides about one that the user made a node.
    chosen = [*lines, "remote.bucket.annex-cluster-node=mycluster", "remote.disk1.annex-cluster-node=mycluster"]
    assert names(membership(config(*chosen), logs([1, 2], remote=special), PLACE)) == ["disk1", "bucket"]


@pytest.mark.parametrize("url", ["/disk1", "../disk1", "ssh://nas/disk1", "annex+http://nas/git-annex/"])
def test_a_git_repository_is_one_whatever_remote_log_says_about_its_uuid(url: str) -> None:
    plain = config(*remote("disk1", 1, url))
    said = f"{uuid(1)} type=S3 name=evil cost=1 encryption=shared exporttree=yes timestamp=1s\n"
    found, expected = membership(plain, logs([1], remote=said), PLACE), membership(plain, logs([1]), PLACE)
    assert found.members == expected.members
    assert special_settings(plain, "disk1", logs([1], remote=said)) == {}


def test_a_dead_repository_is_no_node_here_or_behind_another_gateway() -> None:
    known = logs([1, 2, 5, 6], trust=f"{uuid(2)} X timestamp=1s\n{uuid(6)} X timestamp=1s\n{uuid(1)} 0 timestamp=1s\n")
    found = membership(
        config(
            *remote("untrusted", 1, "/disk1"),
            *remote("dead", 2, "/disk2"),
            *remote("east", 32, "/east", f"annex-cluster-gateway={CLUSTER}", cluster=None),
        ),
        known,
        PLACE,
    )
    assert names(found) == ["untrusted", "east"]
    assert found.members[1].behind == {uuid(5)}
    with pytest.raises(NoCluster, match="has no nodes here"):
        membership(config(*remote("dead", 2, "/disk2")), known, PLACE)


def test_a_cluster_known_only_from_the_log_uses_the_remotes_here() -> None:
    lines = remote("disk1", 1, "/disk1", cluster=None)
    others = [*remote("disk9", 9, "/disk9", cluster=None), *remote("disk2", 2, "/disk2", cluster="elsewhere")]
    elsewhere = GitConfig.parse(
        "".join(f"{x.replace('=', chr(10), 1)}\0" for x in [f"annex.uuid={OWN}", *lines, *others]).encode()
    )
    found = membership(elsewhere, logs([1, 2, 3], uuid=f"{CLUSTER} everywhere timestamp=1s\n"), PLACE, CLUSTER.text)
    assert (found.name, names(found)) == ("everywhere", ["disk1", "disk2"])
    with pytest.raises(NoCluster):
        membership(elsewhere, logs([1, 2, 3]), PLACE, OTHER_CLUSTER.text)


def test_the_cheapest_of_several_remotes_of_a_node_comes_first() -> None:
    lines = [*remote("far", 1, "host:a"), *remote("near", 1, "/a"), *remote("dear", 1, "/b", "annex-cost=300")]
    found = membership(config(*lines), logs([1]), PLACE)
    assert names(found) == ["near"]
    assert [each.name for each in found.members[0].remotes] == ["near", "far", "dear"]
    assert isinstance(found.nodes(CALLER)[0].session(), Failover)


def test_a_remotes_settings_apply_to_its_node() -> None:
    lines = remote(
        "nas", 1, "host:old", "annexUrl=host:new", "annex-readonly=true", "annex-bwlimit=1MiB",
        "annex-bwlimit-upload=500kB", "annex-start-command=wake", "annex-stop-command=sleep",
    )  # fmt: skip
    member = membership(config(*lines, "annex.ssh-options=-F cfg"), logs([1]), PLACE).members[0]
    found = member.remotes[0]
    assert not member.writable
    assert found.way == Direct(Ssh("host", "new"), ("-F", "cfg"))
    assert found.rates == Rates(500_000.0, 2.0**20)
    assert (found.start, found.stop) == ("wake", "sleep")


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("500KiB", 512_000.0),
        ("1 MB", 1e6),
        ("10Mbit", 1.25e6),
        ("100", 100.0),
        ("0", None),
        ("fast", None),
        (None, None),
    ],
)
def test_a_rate_is_read_as_git_annex_reads_it(text: str | None, rate: float | None) -> None:
    settings = [] if text is None else [f"annex-bwlimit={text}"]
    found = membership(config(*remote("disk", 1, "/disk", *settings)), logs([1]), PLACE).members[0].remotes[0]
    assert found.rates == Rates(rate, rate)


def test_a_cluster_is_found_by_name_or_uuid_or_as_the_only_one() -> None:
    one = config()
    two = config(f"annex.cluster.other={OTHER_CLUSTER}")
    assert chosen_cluster(one, None) == (CLUSTER, "mycluster")
    assert chosen_cluster(two, "MyCluster") == (CLUSTER, "mycluster")
    assert chosen_cluster(two, OTHER_CLUSTER.text) == (OTHER_CLUSTER, "other")


@pytest.mark.parametrize(
    ("lines", "wanted", "message"),
    [
        ([f"annex.cluster.other={OTHER_CLUSTER}"], None, rf"several.*mycluster \({CLUSTER}\), other"),
        ([], "nosuch", r"no cluster 'nosuch' of its own \(it has mycluster"),
        ([], None, "mycluster has no nodes here: .*annex-cluster-node mycluster, and run git annex updatecluster"),
        (remote("disk9", 9, "/d"), None, "does not list disk9 as its nodes yet: run git annex updatecluster"),
    ],
)
def test_a_missing_cluster_is_named_with_the_command_to_make_it(
    lines: list[str], wanted: str | None, message: str
) -> None:
    with pytest.raises(NoCluster, match=message):
        membership(config(*lines), logs([1]), PLACE, wanted)


def test_a_repository_without_a_cluster_is_told_how_to_make_one() -> None:
    with pytest.raises(NoCluster, match="git annex initcluster NAME"):
        membership(GitConfig.parse(b""), logs([]), PLACE)


def test_an_uninitialised_repository_is_an_error_that_says_so() -> None:
    with pytest.raises(NotInitialised, match="git annex init"):
        membership(GitConfig.parse(f"annex.cluster.c\n{CLUSTER}\0".encode()), logs([]), PLACE)


WAYS: list[tuple[list[str], Way]] = [
    (["url=/disk"], Direct(Directory("/disk"))),
    (["url=../disk"], Direct(Directory("/srv/gateway/../disk"))),
    (["url=./a:b"], Direct(Directory("/srv/gateway/a:b"))),
    (["url=file:///disk"], Direct(Directory("/disk"))),
    (["url=ssh://me@nas:22/disk"], Direct(Ssh("nas", "/disk", "me", 22))),
    (["url=nas:disk"], Direct(Ssh("nas", "disk"))),
    (["url=ssh://nas/disk", "annex-shell=/opt/git-annex-shell"], Proxied()),
    (["url=ssh://nas/disk", "annex-ssh-options=-4 -v"], Direct(Ssh("nas", "/disk"), ("-4", "-v"))),
    (["url=ssh://nas/disk", "annexUrl=annex+https://nas/git-annex/"], Direct(Http("nas", 9417, "", True))),
    (["url=https://example.com/r"], Proxied()),
    (["url=p2p-annex::net:address"], Direct(P2pAnnex("net", "address"))),
    (
        [f"url=p2p-annex::cluster:unix:/gw?node={OWN}"],
        Direct(P2pAnnex("cluster", f"unix:/gw?node={OWN}")),
    ),
    (["url=tor-annex::abc.onion:99"], Direct(Tor("abc.onion", 99))),
    (["url=gcrypt::ssh://nas/disk"], Proxied()),
    (["url=tcp://nas:5000"], Proxied()),
    (["url=ssh://-oProxyCommand=evil/disk"], Proxied()),
    (["annex-directory=/bucket"], Proxied()),
]


@pytest.mark.parametrize(("settings", "way"), WAYS)
def test_path_and_ssh_remotes_are_reached_directly_and_others_through_git_annex(settings: list[str], way: Way) -> None:
    assert way_to(config(*(f"remote.r.{setting}" for setting in settings)), "r", PLACE) == way


@pytest.mark.parametrize("url", ["p2p-annex::net:address", "tor-annex::abc.onion:99"])
def test_git_annex_reaches_a_node_on_a_p2p_network_without_a_token_in_all_respects(url: str) -> None:
    lines, known = remote("far", 1, url, "annex-bwlimit=1MiB"), logs([1])
    found = membership(config(*lines), known, PLACE, tokens={"far": "sesame"})
    without = membership(config(*lines), known, PLACE, tokens={"near": "sesame"})
    with_token, proxied = found.members[0], without.members[0]
    assert (with_token.kind, with_token.remotes[0].rates) == ("ssh", Rates(2.0**20, 2.0**20))
    # git-annex applies the limit itself.
    assert (proxied.kind, proxied.remotes[0].rates) == ("proxied", Rates())
    assert with_token.cost == proxied.cost == 1000
    nodes = [each.nodes(CALLER)[0] for each in (found, without)]
    assert [node.location for node in nodes] == [url, ""]
    sessions = [node.session() for node in nodes]
    assert [session.name for session in sessions] == [url, str(PLACE)]
    assert "sesame" not in repr((found, nodes))


def test_another_gateway_on_a_p2p_network_gets_the_token_that_git_annex_has_for_it() -> None:
    lines = remote("west", 31, "p2p-annex::net:west", f"annex-cluster-gateway={CLUSTER}", cluster=None)
    known = logs([5], proxy=f"1s {uuid(31)} {uuid(5)}:five\n")
    found = membership(config(*lines), known, PLACE, tokens={"west": "sesame"})
    assert found.nodes(CALLER)[0].session().name == "p2p-annex::net:west"
    with pytest.raises(BadAddress, match="token"):
        membership(config(*lines), known, PLACE).nodes(CALLER)[0].session()


def test_urls_are_rewritten_as_git_does() -> None:
    rules = ["url.ssh://nas/.insteadOf=n:", "url./mnt/.insteadOf=n:disks/", "url.ssh://nas/.insteadOf=nn:"]

    def way(url: str) -> Way:
        return way_to(config(*rules, f"remote.r.url={url}"), "r", PLACE)

    assert way("n:disks/a") == Direct(Directory("/mnt/a"))
    assert way("n:a") == way("nn:a") == Direct(Ssh("nas", "/a"))
    assert way("host:a") == Direct(Ssh("host", "a"))


def test_a_special_remote_with_a_url_is_still_reached_through_git_annex() -> None:
    kinds = {1: "git-lfs", 2: "git", 3: "directory"}
    found = membership(
        config(
            *remote("lfs", 1, "ssh://nas/lfs", "annex-git-lfs=true"),
            *remote("auto", 2, "ssh://nas/auto"),
            *remote("dir", 3, None),
        ),
        logs([1, 2, 3], remote="".join(f"{uuid(n)} type={t} timestamp=1s\n" for n, t in kinds.items())),
        PLACE,
    )
    assert [member.kind for member in found.members] == ["proxied", "ssh", "proxied"]


@pytest.mark.parametrize(
    ("settings", "special", "cost"),
    [
        (["url=/disk"], "", 100),
        (["url=ssh://nas/disk"], "", 200),
        (["url=ssh://localhost/disk"], "", 200),
        (["url=annex+http://nas/git-annex/"], "", 200),
        (["url=p2p-annex::net:address"], "", 1000),
        (["url=p2p-annex::n.t:address"], "", 1000),
        (["url=tor-annex::without.a.port.onion"], "", 1000),
        (["annex-directory=/bucket"], "type=directory", 100),
        (["annex-directory=/bucket"], "type=directory encryption=shared", 150),
        (["annex-s3=true"], "type=S3 encryption=none", 200),
        (["annex-externaltype=x"], "type=external encryption=hybrid", 250),
        (["annex-rsyncurl=/bucket"], "type=rsync rsyncurl=/bucket", 100),
        (["annex-rsyncurl=nas:/bucket"], "type=rsync rsyncurl=nas:/bucket", 200),
        (["url=/disk", "annex-cost=33.5"], "", 33.5),
        (["url=/disk", "annex-cost=cheap"], "", 100),
    ],
)
def test_a_nodes_cost_matches_git_annexs(settings: list[str], special: str, cost: float) -> None:
    known = logs([1], remote=f"{uuid(1)} {special} timestamp=1s\n" if special else "")
    own = config(*(f"remote.r.{setting}" for setting in [*settings, f"annex-uuid={uuid(1)}"]))
    assert cost_of(own, "r", way_to(own, "r", PLACE, special=bool(special)), known) == cost


def gateways(*more: str) -> Membership:
    """Two nodes here, and two other gateways; node 2 can also be reached through the first of these."""
    return membership(
        config(
            *remote("disk1", 1, "/disk1"),
            *remote("disk2", 2, "/disk2"),
            *remote("west", 31, "ssh://west/repo", f"annex-cluster-gateway={CLUSTER}", cluster=None),
            *remote("east", 32, "/east", f"annex-cluster-gateway={OTHER_CLUSTER} {CLUSTER}", cluster=None),
            *more,
        ),
        logs(
            [1, 2, 5, 6, 7],
            proxy=f"1s {uuid(31)} {uuid(5)}:five {uuid(2)}:two {CLUSTER}:mycluster {uuid(99)}:no-node\n",
        ),
        PLACE,
    )


def test_another_gateway_stands_for_its_nodes_without_remotes_here() -> None:
    west, east = gateways().members[2:]
    assert (west.name, west.kind, west.uuid, west.behind) == ("west", "gateway", CLUSTER, frozenset({uuid(5)}))
    # What it proxies is not known yet, so it may be any.
    assert (east.name, east.kind, east.uuid, east.behind) == (
        "east",
        "gateway",
        CLUSTER,
        frozenset(map(uuid, (5, 6, 7))),
    )


def test_a_gateway_the_request_came_through_is_not_asked() -> None:
    assert [node.name for node in gateways().nodes(CALLER, frozenset({uuid(31)}))] == ["disk1", "disk2", "east"]


def sessions(found: Membership, bypass: frozenset[UUID] = frozenset()) -> dict[str, StreamSession]:
    made: dict[str, StreamSession] = {}
    for node in found.nodes(CALLER, bypass):
        session = node.session()
        if isinstance(session, LocalReads):
            session = session.inside
        assert isinstance(session, StreamSession)
        made[node.name] = session
    return made


def command(session: StreamSession) -> list[str]:
    assert isinstance(session.transport, ProcessTransport)
    return session.transport.command


def test_a_gateway_is_asked_for_the_cluster_and_told_which_gateways_to_bypass() -> None:
    made = sessions(gateways(), frozenset({uuid(33)}))
    assert made["west"].expected == made["east"].expected == CLUSTER
    assert made["west"].bypass == {OWN, uuid(33), uuid(32)}
    assert made["east"].bypass == {OWN, uuid(33), uuid(31)}
    assert made["disk1"].bypass == frozenset()
    assert command(made["east"]) == [
        "git-annex-shell", "p2pstdio", "/east", OWN.text, "--uuid", CLUSTER.text,
    ]  # fmt: skip


def test_a_node_that_is_also_a_gateway_is_used_as_both() -> None:
    found = gateways(
        *remote("both", 7, "/both", f"annex-cluster-gateway={CLUSTER}"),
    )
    assert names(found) == ["disk1", "disk2", "both", "west", "east", "both (gateway)"]


def test_a_gateway_without_a_possible_session_counts_as_unreachable() -> None:
    found = membership(
        config(*remote("far", 31, "gcrypt::far", f"annex-cluster-gateway={CLUSTER}", cluster=None)),
        logs([1]),
        PLACE,
    )
    with pytest.raises(BadAddress, match="through the url of the remote far"):
        found.nodes(CALLER)[0].session()


def test_each_node_is_addressed_by_its_uuid_directly_or_through_this_repository() -> None:
    found = membership(
        config(*remote("disk", 1, "/disk"), *remote("bucket", 2, None)), logs([1, 2], remote=BUCKET), PLACE
    )
    made = sessions(found)
    assert command(made["disk"])[2:] == ["/disk", OWN.text, "--uuid", uuid(1).text]
    assert command(made["bucket"])[2:] == ["/srv/gateway", OWN.text, "--uuid", uuid(2).text]
    assert [node.kind for node in found.nodes(CALLER)] == ["local", "proxied"]


@pytest.mark.parametrize("log", ["preferred_content", "required_content"])
async def test_git_annex_does_the_uploads_if_a_node_has_preferred_content(log: str) -> None:
    lines = [*remote("disk1", 1, "/nowhere/disk1"), *remote("disk2", 2, "/nowhere/disk2")]
    easy = membership(config(*lines), logs([1, 2], **{log: f"{uuid(7)} include=*.mp3 timestamp=1s\n"}), PLACE)
    preferring = membership(config(*lines), logs([1, 2], **{log: f"{uuid(2)} include=*.mp3 timestamp=1s\n"}), PLACE)
    assert not easy.has_preferred_content
    assert preferring.has_preferred_content
    # The error says what was tried: git-annex is asked for nothing while no node is there.
    session: Session = preferring.session(CALLER, locations=Log())
    with pytest.raises(SessionError, match=r"no node is reachable: .*disk1 is not there"):
        async with session.upload(Key("WORM-s1--x"), AssociatedFile()):
            pytest.fail("there is no such repository")
    await session.aclose()
    session = easy.session(CALLER, locations=Log())
    with pytest.raises(SessionError, match=r"no node accepted .*disk1 is not there \(/nowhere/disk1\)"):
        async with session.upload(Key("WORM-s1--x"), AssociatedFile()):
            pytest.fail("there is no such repository")
    await session.aclose()


def test_a_cluster_whose_gateways_are_all_bypassed_cannot_be_opened() -> None:
    found = membership(
        config(*remote("west", 31, "/west", f"annex-cluster-gateway={CLUSTER}", cluster=None)), logs([5]), PLACE
    )
    assert found.session(CALLER, locations=Log()).uuid == CLUSTER
    with pytest.raises(NoCluster, match="behind gateways"):
        found.session(CALLER, locations=Log(), bypass=frozenset({uuid(31)}))
