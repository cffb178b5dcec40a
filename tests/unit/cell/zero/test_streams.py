"""What cell zero needs for a stream, and where it connects for one."""

from cell.zero.streams import login_of, obstacles

ABLE = {"logical": True, "replicates": True, "bypasses": True, "applies": True}


def test_a_server_or_role_that_cannot_stream_is_named_with_what_to_do() -> None:
    assert obstacles(ABLE) == ()
    said = {lack: obstacles(ABLE | {lack: False}) for lack in ABLE}
    assert {lack: len(found) for lack, found in said.items()} == dict.fromkeys(ABLE, 1)
    assert "wal_level = logical" in said["logical"][0]
    assert "REPLICATION" in said["replicates"][0]
    assert "BYPASSRLS" in said["bypasses"][0]
    assert "session_replication_role" in said["applies"][0]


def test_a_stream_goes_to_the_database_of_the_dsn_as_its_user() -> None:
    login = login_of("postgresql://shop%40us:p%3Aw@db.test:6543/old", "cellwall-zero-stream")
    assert (login.host, login.port, login.database, login.user) == ("db.test", 6543, "old", "shop@us")
    assert (login.password, login.application) == ("p:w", "cellwall-zero-stream")
    assert "p:w" not in repr(login)
    assert login_of("postgresql://shop@db.test", "x").database == "shop"
