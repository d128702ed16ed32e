"""Open sessions from addresses."""

FORMS = (
    "/dir, file:///dir, ssh://[user@]host[:port]/dir, [user@]host:dir, unix:/path, tcp://host:port, tls://host:port, "
    "annex+http[s]://host[:port]/git-annex/, tor-annex::onion:port, p2p-annex::NET:ADDRESS"
)
"""The supported forms of an address, for messages."""
