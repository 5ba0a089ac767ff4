"""
Owns the tests of the settings: precedence, validation, the table of keys.

Knows nothing of click.
Invariants: the environment is a mapping of the test.
Source: design.md §8 (command line).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcache.config import (
    HF_UPSTREAM_DEFAULT,
    SETTINGS,
    DaemonConfig,
    Setting,
    collect_settings,
    default_name,
    default_store,
    load_config,
)
from p2pcache.core.messages import is_peer_name
from p2pcache.errors import ConfigError

NAMES = [setting.name for setting in SETTINGS]


def write_file(folder: Path, text: str) -> Path:
    """Write a file of settings."""
    path = folder / "p2pcache.toml"
    path.write_text(text)
    return path


def test_load_config_of_nothing_is_the_contract() -> None:
    """The defaults of design.md §8."""
    assert load_config({}, {}) == DaemonConfig(
        name=default_name(),
        store=default_store(),
        local=("127.0.0.1", 7277),
        listen=("0.0.0.0", 7278),
        peers=(),
        discover=("mdns",),
        hf_upstream="https://huggingface.co",
        trust_peers=False,
        quota_bytes=None,
        free_floor_bytes=64 * 1024**2,
        upstream_limit_bps=None,
        download_limit_bps=None,
        upload_limit_bps=None,
        peer_limit_bps=None,
        log_format="text",
    )


def test_settings_table_matches_config_fields() -> None:
    """A key for each field and a field for each key; the file itself is no field."""
    fields = {field.name for field in dataclasses.fields(DaemonConfig)}
    named = {"peer": "peers", "quota": "quota_bytes", "free_floor": "free_floor_bytes"}
    named |= {"allow_path": "allow_paths", "label": "labels"}
    named |= {name: f"{name}_s" for name in ("public_ttl", "offline_grace")}
    named |= {name: f"{name}_bps" for name in NAMES if name.endswith("_limit")}
    assert {named.get(name, name) for name in NAMES} - {"config"} == fields
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("entry", SETTINGS, ids=NAMES)
def test_setting_explains_itself(entry: Setting) -> None:
    """What the reference page is made from: names, a help sentence, a reason."""
    assert (
        entry.environment == "P2PCACHE_" + entry.flag.removeprefix("--").replace("-", "_").upper()
    )
    assert entry.help.endswith(".")
    assert entry.reason.endswith(".")
    assert entry.default_text


@pytest.mark.parametrize(
    ("name", "flag", "variable", "in_file", "field"),
    [
        ("name", "a", "b", '"c"', "name"),
        ("local", "127.0.0.1:1", "[::1]:2", '"localhost:3"', "local"),
        ("listen", "127.0.0.1:1", "[::]:2", '"0.0.0.0:0"', "listen"),
        ("peer", ("a:1", "b:2"), "c:3, d:4,", '["e:5"]', "peers"),
        ("discover", ("none",), "mdns", '"none"', "discover"),
        ("hf_upstream", "http://a", "http://b", '"http://c"', "hf_upstream"),
        ("ms_upstream", "http://a", "http://b", '"http://c"', "ms_upstream"),
        ("quota", "1GB", "1GiB", "1000", "quota_bytes"),
        ("free_floor", "1GB", "1GiB", '"0"', "free_floor_bytes"),
        ("upstream_limit", "200Mbit", "25MiB", "200000", "upstream_limit_bps"),
        ("download_limit", "1MB/s", "2MB/s", '"none"', "download_limit_bps"),
        ("upload_limit", "1MB", "2MB", "0", "upload_limit_bps"),
        ("peer_limit", "1MB", "2MB", '"0"', "peer_limit_bps"),
        ("log_format", "json", "text", '"json"', "log_format"),
    ],
)
def test_load_config_of_all_sources_takes_flag_first(
    tmp_path: Path, name: str, flag: object, variable: str, in_file: str, field: str
) -> None:
    """flags > environment > file > defaults, for each setting on its own."""
    path = write_file(tmp_path, f"{name} = {in_file}\n")
    environment = {"P2PCACHE_CONFIG": str(path), f"P2PCACHE_{name.upper()}": variable}

    def value(flags: dict[str, object], variables: dict[str, str]) -> object:
        return getattr(load_config(flags, variables), field)

    by_flag = value({name: flag}, environment)
    assert by_flag == value({name: flag}, {})
    by_variable = value({}, environment)
    assert by_variable == value({}, {f"P2PCACHE_{name.upper()}": variable})
    by_file = value({"config": str(path)}, {})
    assert by_flag != by_variable != by_file


def test_load_config_of_lists_splits_and_drops_repetitions() -> None:
    """Commas in the environment; an entry named twice counts once."""
    loaded = load_config({}, {"P2PCACHE_PEER": "a:1, b:2,,a:1 "})
    assert loaded.peers == ("a:1", "b:2")


def test_load_config_of_empty_values_takes_lower_source() -> None:
    """Click gives None, False and (); a shell gives empty variables."""
    flags = {"name": None, "peer": (), "trust_peers": False}
    environment = {"P2PCACHE_NAME": " ", "P2PCACHE_PEER": "a:1", "P2PCACHE_TRUST_PEERS": "1"}
    loaded = load_config(flags, environment)
    assert (loaded.name, loaded.peers, loaded.trust_peers) == (default_name(), ("a:1",), True)


def test_load_config_never_reads_hf_endpoint() -> None:
    """Workers' environments point it at us; following it would be a loop."""
    assert load_config({}, {"HF_ENDPOINT": "http://evil"}).hf_upstream == HF_UPSTREAM_DEFAULT


@pytest.mark.parametrize(("text", "expected"), [("1", True), ("True", True), ("off", False)])
def test_trust_peers_of_environment_is_a_switch(text: str, expected: bool) -> None:
    """The usual words, in any case."""
    assert load_config({}, {"P2PCACHE_TRUST_PEERS": text}).trust_peers is expected


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("name", "a b", "cannot name a peer; use letters"),
        ("name", "a" * 65, "cannot name a peer"),
        ("name", "-a", "cannot name a peer"),
        ("store", "a\nb", "not a path; write"),
        ("store", "~nobody-of-that-name/x", "names no user's home"),
        ("local", "0.0.0.0:7277", "not a loopback address.*--listen"),
        ("local", "10.0.0.7:7277", "not a loopback address"),
        ("local", "[::]:7277", "not a loopback address"),
        ("local", "[::ffff:127.0.0.1]:7277", "not a loopback address"),
        ("local", "localhost.example:7277", "not a loopback address"),
        ("local", "127.0.0.1", "not HOST:PORT; write"),
        ("local", "127.0.0.1:70000", "use a number from 1 to 65535"),
        ("listen", ":7278", "not HOST:PORT"),
        ("listen", "0.0.0.0:00", "use a number from 1"),
        ("peer", ("lab-2",), "not HOST:PORT"),
        ("peer", ("lab-2:0",), "use a number from 1"),
        ("discover", ("dns:peers.example",), "not built yet; name the peers with --peer"),
        ("discover", ("bluetooth",), "use mdns or none"),
        ("discover", ("none", "mdns"), "stands alone"),
        ("hf_upstream", "huggingface.co", "not an http or https URL; write"),
        ("hf_upstream", "ftp://a", "not an http or https URL"),
        ("hf_upstream", "https://", "not an http or https URL"),
        ("hf_upstream", "https://a b", "not an http or https URL"),
        ("hf_upstream", "https://a\tb", "not an http or https URL"),
        ("hf_upstream", "https://ä", "not an http or https URL"),
        ("hf_upstream", "https://[::1", "not a URL"),
        ("hf_upstream", "https://a:99999", "not a URL"),
        ("hf_upstream", "https://a:0", "has port 0"),
        ("hf_upstream", "https://a?x=1", "query or a fragment"),
        ("hf_upstream", "https://a#x", "query or a fragment"),
        ("ms_upstream", "modelscope.cn", "not an http or https URL; write.*modelscope.cn"),
        ("trust_peers", "perhaps", "use true or false"),
        ("quota", "lots", "not a size; write it like 500GB"),
        ("quota", True, "not text"),
        ("quota", "0", "leaves room for nothing; write a size, or none"),
        ("free_floor", "-1", "not a size"),
        ("upstream_limit", "200Mb", "not a rate; write it like 200Mbit, 25MB/s or 25MiB"),
        ("peer_limit", "100kB/s", "less than 1Mbit"),
        ("upload_limit", True, "not text"),
        ("log_format", "xml", "use text or json"),
    ],
)
def test_load_config_of_impossible_value_says_where_and_what(
    name: str, value: object, message: str
) -> None:
    """One sentence: the flag, what is wrong, what to write."""
    flag = next(setting.flag for setting in SETTINGS if setting.name == name)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config({name: value}, {})
    assert str(caught.value).startswith(f"{flag}: ")
    assert len(str(caught.value)) < 600


def test_hf_upstream_with_credentials_does_not_show_them() -> None:
    """The sentence goes to terminals and logs."""
    with pytest.raises(ConfigError, match="holds credentials; leave them out") as caught:
        load_config({}, {"P2PCACHE_HF_UPSTREAM": "https://user:hf_secret@hub.example"})
    assert "hf_secret" not in str(caught.value)
    assert str(caught.value).startswith("P2PCACHE_HF_UPSTREAM: ")


@pytest.mark.parametrize("text", ["none", " None "])
def test_quota_of_none_is_no_quota(text: str) -> None:
    """The default can be written down, against a file that sets another."""
    assert load_config({}, {"P2PCACHE_QUOTA": text}).quota_bytes is None


@pytest.mark.parametrize(
    ("local", "upstream"),
    [
        ("127.0.0.1:7277", "http://127.0.0.1:7277"),
        ("127.0.0.1:7277", "http://localhost:7277/"),
        ("localhost:7277", "http://127.0.0.1:7277/hub"),
        ("[::1]:7277", "http://[::1]:7277"),
        ("127.0.0.9:80", "http://127.0.0.9"),
        ("127.0.0.1:443", "https://LOCALHOST"),
    ],
)
def test_hf_upstream_that_is_ourselves_is_refused(local: str, upstream: str) -> None:
    """Every request would come back."""
    with pytest.raises(ConfigError, match="own local endpoint; name the hub"):
        load_config({"local": local, "hf_upstream": upstream}, {})
    with pytest.raises(ConfigError, match=r"own local endpoint; name the hub.*modelscope\.cn"):
        load_config({"local": local, "ms_upstream": upstream}, {})


@pytest.mark.parametrize("upstream", ["http://127.0.0.1:7279", "http://lab-2:7277"])
def test_hf_upstream_near_ourselves_is_kept(upstream: str) -> None:
    """A test hub on another port, another machine's daemon."""
    assert load_config({"hf_upstream": upstream + "/"}, {}).hf_upstream == upstream


@pytest.mark.parametrize("listen", ["0.0.0.0:7277", "127.0.0.1:7277", "[::]:7277"])
def test_listen_on_port_of_local_is_refused(listen: str) -> None:
    """Told before half of the daemon is up."""
    with pytest.raises(ConfigError, match="both use port 7277; give one"):
        load_config({"listen": listen}, {})
    assert load_config({"listen": "127.0.0.1:0", "local": "127.0.0.1:0"}, {}).listen[1] == 0


def test_file_with_every_key_is_read(tmp_path: Path) -> None:
    """Keys are the flags, with underscores; a store is relative to its file."""
    path = write_file(
        tmp_path,
        'name = "lab-1"\nstore = "models"\nlocal = "127.0.0.1:1"\nlisten = "0.0.0.0:2"\n'
        'peer = ["a:3", "b:4"]\ndiscover = ["mdns"]\nhf_upstream = "https://mirror.example/hf"\n'
        'trust_peers = true\nquota = "1.5TiB"\nfree_floor = 0\nlog_format = "json"\n'
        'upstream_limit = "200Mbit"\ndownload_limit = "1GB/s"\nupload_limit = "none"\n'
        "peer_limit = 2000000\n",
    )
    assert load_config({"config": str(path)}, {}) == DaemonConfig(
        name="lab-1",
        store=tmp_path / "models",
        local=("127.0.0.1", 1),
        listen=("0.0.0.0", 2),
        peers=("a:3", "b:4"),
        discover=("mdns",),
        hf_upstream="https://mirror.example/hf",
        trust_peers=True,
        quota_bytes=3 * 1024**4 // 2,
        free_floor_bytes=0,
        upstream_limit_bps=25_000_000,
        download_limit_bps=1_000_000_000,
        upload_limit_bps=None,
        peer_limit_bps=2_000_000,
        log_format="json",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hf_upsteam = 'x'", "sets 'hf_upsteam'.*the nearest one is hf_upstream"),
        ("trust-peers = true", "the nearest one is trust_peers"),
        ("config = 'x'", "no setting"),
        ("[name]", "is not text; put it in quotes"),
        ("local = 7277", "local in .*: '7277' is not text"),
        ("peer = 3", "not a list"),
        ("peer = [3]", "not text"),
        ("trust_peers = 'perhaps'", "use true or false"),
        ("trust_peers = 1", "use true or false"),
        ("name = ", "not TOML"),
        ("name = '\x00'", "not TOML"),
        ("#" * (1 << 20) + "##", "too large"),
    ],
)
def test_file_with_mistake_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """A typing error must not be a setting that silently does nothing."""
    path = write_file(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config({"config": str(path)}, {})
    assert path.name in str(caught.value)


def test_file_that_cannot_be_read_names_who_named_it(tmp_path: Path) -> None:
    """Missing, a folder: the variable that said so is in the sentence."""
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(ConfigError, match=r"cannot be read .*; check P2PCACHE_CONFIG"):
            load_config({}, {"P2PCACHE_CONFIG": str(path)})
    (tmp_path / "latin").write_bytes(b"name = '\xff'")
    with pytest.raises(ConfigError, match="not TOML"):
        load_config({"config": str(tmp_path / "latin")}, {})


def test_collect_settings_knows_where_each_came_from(tmp_path: Path) -> None:
    """What `config show` will print."""
    path = write_file(tmp_path, "listen = '0.0.0.0:1'\nname = 'x'\n")
    given = collect_settings(
        {"config": str(path), "local": "127.0.0.1:1"}, {"P2PCACHE_NAME": "lab-1"}
    )
    origins = {name: setting.origin for name, setting in given.items()}
    assert origins.pop("local") == "--local"
    assert origins.pop("name") == "P2PCACHE_NAME"
    assert origins.pop("listen") == f"listen in {path}"
    assert set(origins.values()) == {"default"}


@pytest.mark.parametrize(
    ("host_name", "expected"),
    [
        ("lab-1.example.org", "lab-1.example.org"),
        ("Käse Box", "K-se-Box"),
        ("-._", "peer"),
        ("", "peer"),
        ("a" * 70, "a" * 64),
    ],
)
def test_default_name_of_host_is_sanitised(host_name: str, expected: str) -> None:
    """As near to the host's name as a peer's name can be."""
    assert default_name(host_name) == expected


@given(st.text(max_size=100))
def test_default_name_of_any_host_names_a_peer(host_name: str) -> None:
    """No machine is without a valid name."""
    assert is_peer_name(default_name(host_name))


@given(
    name=st.sampled_from([name for name in NAMES if name != "config"]),
    value=st.one_of(
        st.text(max_size=40),
        st.from_regex(r"(https?://)?[a-z0-9.:\[\]@?#/%-]{0,20}(:[0-9]{1,6})?", fullmatch=True),
    ),
)
def test_load_config_of_any_text_loads_or_is_refused(name: str, value: str) -> None:
    """No text raises anything but ConfigError, and what passes is usable."""
    try:
        loaded = load_config({name: value}, {})
    except ConfigError:
        return
    assert is_peer_name(loaded.name)
    assert loaded.store.is_absolute()
    assert 0 <= loaded.local[1] <= 65_535


def test_settings_of_downloads_are_read(tmp_path: Path) -> None:
    """Folders are made whole, labels are pairs, and at least one model is fetched at a time."""
    flags = {"allow_path": ("/models", "~/m"), "label": ("b=2", "a=1"), "downloads_max": "3"}
    config = load_config(flags, {"HOME": str(tmp_path)})
    assert config.allow_paths[0] == Path("/models")
    assert config.allow_paths[1].is_absolute()
    assert config.labels == (("a", "1"), ("b", "2"))
    assert config.downloads_max == 3
    assert load_config({}, {"P2PCACHE_ALLOW_PATH": "/a,/b"}).allow_paths == (Path("/a"), Path("/b"))
    for bad in (
        {"downloads_max": "0"},
        {"downloads_max": "65"},
        {"downloads_max": "many"},
        {"label": ("novalue",)},
        {"label": tuple(f"k{n}=v" for n in range(65))},
    ):
        with pytest.raises(ConfigError):
            load_config(bad, {})
