"""The url= of a remote: what it reaches, what is refused and why, and that no secret leaks."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cluster_remote.p2p.key import UUID
from cluster_remote.transport.address import (
    Address,
    BadAddress,
    Directory,
    Http,
    P2pAnnex,
    Ssh,
    Tcp,
    Tls,
    Tor,
    Unix,
    at_node,
    parse_address,
)
from cluster_remote.transport.opening import Caller, session_at

NODE = UUID("0de00000-0000-4000-8000-000000000003")

ACCEPTED: list[tuple[str, Address]] = [
    ("/srv/annex", Directory("/srv/annex")),
    ("/", Directory("/")),
    ("/with space/100%/a?node=b", Directory("/with space/100%/a?node=b")),
    ("/caf\u00e9/\udcff", Directory("/caf\u00e9/\udcff")),
    ("file:///srv/annex", Directory("/srv/annex")),
    ("file://localhost/srv/annex", Directory("/srv/annex")),
    ("FILE:///with%20space/100%25", Directory("/with space/100%")),
    ("file:///latin1%FF", Directory("/latin1\udcff")),
    ("ssh://host/srv/annex", Ssh("host", "/srv/annex")),
    ("ssh://me@host:2222/srv/annex", Ssh("host", "/srv/annex", "me", 2222)),
    ("ssh://host:/srv/annex", Ssh("host", "/srv/annex")),
    ("ssh://host/~/annex", Ssh("host", "~/annex")),
    ("ssh://host/~you/annex", Ssh("host", "~you/annex")),
    ("ssh://host/with%20space", Ssh("host", "/with space")),
    ("ssh://host/-dash", Ssh("host", "/-dash")),
    ("ssh://me%40corp@host/srv", Ssh("host", "/srv", "me@corp")),
    (r"ssh://CORP\me@host/srv", Ssh("host", "/srv", r"CORP\me")),
    ("ssh://[::1]/srv", Ssh("::1", "/srv")),
    ("ssh://me@[fe80::1%25eth0]:22/srv", Ssh("fe80::1%eth0", "/srv", "me", 22)),
    ("git+ssh://host/srv", Ssh("host", "/srv")),
    ("ssh+git://host/srv", Ssh("host", "/srv")),
    ("host:/srv/annex", Ssh("host", "/srv/annex")),
    ("host:annex", Ssh("host", "annex")),
    ("me@host:annex/with space", Ssh("host", "annex/with space", "me")),
    ("host:~/annex", Ssh("host", "~/annex")),
    ("host:/with%20percent", Ssh("host", "/with%20percent")),
    ("host:2222/annex", Ssh("host", "2222/annex")),
    ("[::1]:annex", Ssh("::1", "annex")),
    ("me@[fe80::1%eth0]:/srv", Ssh("fe80::1%eth0", "/srv", "me")),
    ("me@tcp:annex", Ssh("tcp", "annex", "me")),
    ("under_score.example.com:x", Ssh("under_score.example.com", "x")),
    ("unix:/run/gw.sock", Unix("/run/gw.sock")),
    ("unix:///run/gw.sock", Unix("/run/gw.sock")),
    ("UNIX:/run/gw.sock", Unix("/run/gw.sock")),
    ("unix:/run/a b%20", Unix("/run/a b%20")),
    (f"unix:/run/gw.sock?node={NODE}", Unix("/run/gw.sock", NODE)),
    ("unix:/run/gw?other=1", Unix("/run/gw?other=1")),
    ("tcp://host:4711", Tcp("host", 4711)),
    ("tcp://host:4711/", Tcp("host", 4711)),
    ("tcp://127.0.0.1:1", Tcp("127.0.0.1", 1)),
    ("tcp://[::1]:65535", Tcp("::1", 65535)),
    ("tcp://[fe80::1%25eth0]:4711", Tcp("fe80::1%eth0", 4711)),
    (f"tcp://host:4711?node={str(NODE).upper()}", Tcp("host", 4711, NODE)),
    ("tls://host:4711", Tls("host", 4711)),
    (f"tls://[::1]:4711?node={NODE}", Tls("::1", 4711, NODE)),
    ("annex+https://host/git-annex/", Http("host", 9417, "", True)),
    ("annex+http://host:80/data/git-annex", Http("host", 80, "/data")),
    ("ANNEX+HTTPS://[::1]:8443/git-annex-p2phttp", Http("::1", 8443, "/git-annex-p2phttp", True)),
    ("tor-annex::abc.onion:4711", Tor("abc.onion", 4711)),
    ("p2p-annex::net:unix:/run/gw", P2pAnnex("net", "unix:/run/gw")),
    (f"p2p-annex::net:place?node={NODE}", P2pAnnex("net", "place", NODE)),
]


@pytest.mark.parametrize(("text", "address"), ACCEPTED)
def test_every_form_of_address_is_read(text: str, address: Address) -> None:
    assert parse_address(text) == address


KINDS = {type(address).__name__: address for _, address in ACCEPTED}


@pytest.mark.parametrize("address", KINDS.values(), ids=KINDS)
def test_each_kind_of_address_is_opened(address: Address) -> None:
    assert session_at(address, Caller(NODE), server=NODE, token="token").name == str(address)


REFUSED = [
    ("", "the url is empty"),
    ("annex", "is not an address"),
    ("./annex", "is not an address"),
    ("../a:b", "is not an address"),
    ("~/annex", "is not an address"),
    ("host", "is not an address"),
    (":dir", "is not an address"),
    ("/dir\nls", "control characters"),
    ("/dir\x1b[2J", "control characters"),
    ("/dir\x9b2J", "control characters"),
    ("ssh://host/a%0Ab", "control characters"),
    ("file:///a%00b", "control characters"),
    ("file:///a%9B", None),
    ("file:///a%C2%9B", "control characters"),
    ("file://", "with three slashes"),
    ("file:///", "with three slashes"),
    ("file://otherhost/dir", "with three slashes"),
    ("file:/dir", "two slashes come after file:"),
    ("ssh:host/dir", "two slashes come after ssh:"),
    ("tcp:host:4711", "two slashes come after tcp:"),
    ("ssh://", "valid host name"),
    ("ssh:///dir", "valid host name"),
    ("ssh://host", "does not say which directory"),
    ("ssh://host/", "does not say which directory"),
    ("ssh://host//", "does not say which directory"),
    ("host:", "does not say which directory"),
    ("host:/", "does not say which directory"),
    ("host:-oProxyCommand=ls", "does not say which directory"),
    ("ssh://-oProxyCommand=ls/dir", "valid host name"),
    ("ssh://%2DoProxyCommand=ls/dir", "valid host name"),
    ("-oProxyCommand=ls:dir", "valid host name"),
    ("-l:dir", "valid host name"),
    ("ssh://-l@host/dir", "not a user name"),
    ("-l@host:dir", "not a user name"),
    ("ssh://@host/dir", "not a user name"),
    ("@host:dir", "not a user name"),
    ("ssh://me;ls@host/dir", "not a user name"),
    ("ssh://host;ls/dir", "valid host name"),
    ("ssh://ho st/dir", "valid host name"),
    ("ssh://$(ls)/dir", "valid host name"),
    ("ssh://a%3Ab/dir", "valid host name"),
    ("ssh://a%25b/dir", "valid host name"),
    ("ssh://::1/dir", r"ssh://\[user@\]host\[:port\]/dir"),
    ("ssh://[::1/dir", r"ssh://\[user@\]host\[:port\]/dir"),
    ("ssh://host:x/dir", r"ssh://\[user@\]host\[:port\]/dir"),
    ("ssh://host:0/dir", "0 is not a port"),
    ("ssh://host:65536/dir", "65536 is not a port"),
    ("ssh://host:99999999999999999999/dir", "is not a port"),
    ("ssh://me:pw@host/dir", "cannot contain a password"),
    ("me:pw@host:dir", "cannot contain a password"),
    ("unix:", "unix:/path, absolute"),
    ("unix:/", "unix:/path, absolute"),
    ("unix:run/gw.sock", "unix:/path, absolute"),
    ("unix://run/gw.sock", "unix:/path, absolute"),
    ("unix:////run/gw.sock", "unix:/path, absolute"),
    ("unix:/run/gw.sock?node=", "after .node= comes a repository's UUID"),
    ("unix:/run/gw.sock?node=disk1", "after .node= comes a repository's UUID"),
    ("tcp://", "tcp://host:port"),
    ("tcp://host", "tcp://host:port"),
    ("tcp://host:", "tcp://host:port"),
    ("tcp://:4711", "valid host name"),
    ("tcp://host:4711/dir", "tcp://host:port"),
    ("tcp://host:70000", "is not a port"),
    ("tcp://token@host:4711", "CLUSTER_REMOTE_TOKEN"),
    ("tcp://host:4711?node=x", "after .node= comes a repository's UUID"),
    ("ftp://host/dir", "urls of the form ftp:// are not supported"),
    ("ext::sh -c ls%", "urls of the form ext:: are not supported"),
    ("p2p-annex::NET", "is p2p-annex::NET:ADDRESS"),
    ("p2p-annex::-x:y", "is p2p-annex::NET:ADDRESS"),
    ("p2p-annex::../x:y", "is p2p-annex::NET:ADDRESS"),
    ("p2p-annex::net:--option", "is p2p-annex::NET:ADDRESS"),
    ("tor-annex::example.com:1", "ends in .onion"),
    ("tor-annex::x.onion", "is tor-annex::NAME.onion:port"),
    ("tls://host", "is tls://host:port"),
    ("annex+https://host/git-annex/?x=y", "has no [?] or #"),
    ("annex+http://host:0/", "is not a port"),
]


@pytest.mark.parametrize(("text", "reason"), [(text, reason) for text, reason in REFUSED if reason is not None])
def test_an_invalid_address_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(BadAddress, match=reason) as caught:
        parse_address(text)
    assert str(caught.value).isprintable()


SECRET = "s3cr3t"


@pytest.mark.parametrize(
    "text",
    [
        f"ssh://me:{SECRET}@host/dir",
        f"ssh://me:{SECRET}@host:99999/dir",
        f"ssh://me:{SECRET}@-host/dir",
        f"ssh://me:{SECRET}@host",
        f"ssh://me%3A{SECRET}@host/dir",
        f"ssh://me:{SECRET}%40host/dir",
        f"ssh://{SECRET} @host/dir",
        f"ssh://a@b:{SECRET}@host/dir\x07",
        f"me:{SECRET}@host:dir",
        f"tcp://{SECRET}@host:4711",
        f"tcp://me:{SECRET}@host:4711",
        f"tcp://a@{SECRET}@host:4711",
        f"tcp://{SECRET}/x@host:4711",
        f"tcp://{SECRET}%40host:4711",
        f"tcp://host:4711?token={SECRET}",
        f"tcp://host:4711/?a=1&token={SECRET}",
        f"tls://{SECRET}@host:4711",
        f"http://me:{SECRET}@host/",
        f"file://me:{SECRET}@host/dir",
        f"unix:{SECRET}@host",
        f"{SECRET}@",
    ],
)
def test_no_refusal_quotes_a_possible_password_or_token(text: str) -> None:
    with pytest.raises(BadAddress) as caught:
        parse_address(text)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


# Texts made of what addresses are made of, so that many of them are some.
_starts = ["ssh://", "tcp://", "unix:", "file://", "host:", "me@host:", "/"]
_parts = ["host", "me", "@", ":", "/", "-", "~", "[::1]", "[fe80::1%25e]", "22", "::", "dir", "?node=", str(NODE)]
_odd = ["%40", "%2D", "%25", "%C3%A9", "%", "\udcff", "?", "&", "!", "'", " "]
_pieces = st.sampled_from([*_starts, *_parts, *_odd])
addressish = st.lists(_pieces, max_size=8).map("".join)
any_text = st.text() | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape"))


@given(any_text | addressish)
@example("ssh://me@host:22/~")
def test_any_text_is_an_address_or_raises_bad_address(text: str) -> None:
    outcome: object
    try:
        outcome = parse_address(text)
    except BadAddress as refusal:
        outcome = str(refusal)
    assert isinstance(outcome, Address) or (isinstance(outcome, str) and outcome.isprintable())


def _reads_back(text: str) -> None:
    try:
        address = parse_address(text)
    except BadAddress:
        return
    assert parse_address(str(address)) == address


@given(addressish | any_text.map("/{}".format))
def test_addresses_round_trip(text: str) -> None:
    _reads_back(text)


@pytest.mark.parametrize("text", [text for text, _ in ACCEPTED])
def test_each_form_of_address_round_trips(text: str) -> None:
    _reads_back(text)


_words = st.text(max_size=10)


@given(
    st.sampled_from(["host:{}", "me@host:{}", "ssh://host/{}", "ssh://me@[::1]:22/{}", "unix:/{}", "file:///{}"]),
    _words,
)
def test_odd_paths_of_every_form_round_trip(form: str, path: str) -> None:
    _reads_back(form.format(path))


def test_an_address_without_an_exact_text_is_written_as_an_equivalent() -> None:
    assert parse_address(str(Ssh("host", "annex", port=22))) == Ssh("host", "~/annex", port=22)


@given(addressish | any_text | st.sampled_from(["-a@", "-a:", ""]).flatmap(lambda p: addressish.map(lambda t: p + t)))
def test_nothing_in_a_url_becomes_an_option_or_a_second_argument_for_ssh(text: str) -> None:
    try:
        address = parse_address(text)
    except BadAddress:
        return
    if isinstance(address, Ssh):
        assert not address.destination.startswith("-")
        assert not address.host.startswith("-")
        assert not set(address.destination) & set(" \t\n\"'`;&|<>(){}*?!~#=")
        assert not address.path.startswith("-")


@pytest.mark.parametrize(
    ("text", "token", "local"),
    [
        ("/dir", False, True),
        ("ssh://host/dir", False, False),
        ("localhost:dir", False, True),
        ("ssh://127.0.0.1/dir", False, True),
        ("ssh://[::1]/dir", False, True),
        ("unix:/s", True, True),
        ("tcp://host:1", True, False),
        ("tcp://127.1.2.3:1", True, True),
        ("tcp://127.example.com:1", True, False),
    ],
)
def test_an_address_knows_if_it_needs_a_token_and_is_local(text: str, token: bool, local: bool) -> None:
    address = parse_address(text)
    assert address.wants_token is token
    assert address.local is local


def test_a_node_behind_a_gateway_has_the_gateways_address() -> None:
    assert at_node(parse_address("tcp://host:1"), NODE) == Tcp("host", 1, NODE)
    assert at_node(parse_address("unix:/s"), NODE) == Unix("/s", NODE)
    assert at_node(parse_address("/dir"), NODE) == Directory("/dir")
    assert at_node(parse_address("host:dir"), NODE) == Ssh("host", "dir")
