"""Reading the file: every mistake at once with its path; the environment on top; paths made absolute."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from proxy.settings import ConfigurationError, Settings, load_settings

Load = Callable[[str | bytes], Settings]
UPSTREAM = "upstreams: {a.test: {url: 'https://a.test'}}\n"


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads a document out of a file, with nothing of this program's in the environment."""
    import os

    for name in [name for name in os.environ if name.upper().startswith("PULLTHROUGH_")]:
        monkeypatch.delenv(name)
    file = tmp_path / "proxy.yaml"

    def read(document: str | bytes) -> Settings:
        file.write_bytes(document if isinstance(document, bytes) else document.encode())
        return load_settings(file)

    return read


def mistakes(load: Load, document: str | bytes) -> dict[str, str]:
    """The mistakes in `document` by their path."""
    with pytest.raises(ConfigurationError) as caught:
        load(document)
    assert str(caught.value) == "\n".join(caught.value.mistakes)
    found = dict(mistake.split(": ", 1) for mistake in caught.value.mistakes)
    assert len(found) == len(caught.value.mistakes)
    return found


def test_only_upstreams_are_required(load: Load) -> None:
    """A file of one line is enough; it has one cluster, which fits everybody."""
    settings = load(UPSTREAM)
    assert [cluster.name for cluster in settings.clusters] == ["default"]
    assert settings.manifests.tag_ttl == 600


def test_every_kind_of_mistake_is_reported_at_once_with_its_path(load: Load) -> None:
    """Types, units, patterns, unknown keys, missing keys, and mistakes between keys, in one run."""
    document = """
listen: [{address: 0.0.0.0:5000}, {address: 5001}, {address: 0.0.0.0:5000}]
admin: {address: 0.0.0.0:5000, tokenfile: x}
workers: 65
trusted_proxies: [10.0.0.0/8, 10.1.2.3/8, nonsense]
cache: {max_size: 100, min_free: 1Gib}
manifests: {tag_ttl: 10, tag_rules: [{tags: 'v*'}, {tags: 5, ttl: 1d}]}
upstreams:
  a.test: {url: ftp://a.test, aliases: [b.test], default: true, parallel: 99, credentials: {username: me}}
  b.test: {default: true, proxy: 'https://p', connect_timeout: soon, max_connections: 0}
  'c test': {url: 'https://c.test'}
clusters:
  - {name: one, mode: magic, upstreams: [nowhere.test]}
  - {name: one, match: {}, push: maybe}
  - {name: '-', match: {listeners: ['0.0.0.0:9'], networks: [1.2.3.4/99]}, login: perhaps, credentials: some}
shutdown_timeout: 1 minute
log: {level: loud, format: xml, access: perhaps}
logs: {}
"""
    found = mistakes(load, document)
    assert set(found) == {
        "listen[1].address", "listen[2].address", "admin.address", "admin.tokenfile", "workers", "trusted_proxies[1]",
        "trusted_proxies[2]", "cache.max_size", "cache.min_free", "manifests.tag_ttl", "manifests.tag_rules[0].ttl",
        "manifests.tag_rules[1].tags", 'upstreams."a.test".url', 'upstreams."a.test".aliases[0]',
        'upstreams."a.test".parallel', 'upstreams."a.test".credentials', 'upstreams."b.test".url',
        'upstreams."b.test".default', 'upstreams."b.test".proxy', 'upstreams."b.test".connect_timeout',
        'upstreams."b.test".max_connections', "upstreams.c test", "clusters[0].mode", "clusters[0].upstreams[0]",
        "clusters[1]", "clusters[1].name", "clusters[1].match", "clusters[1].push", "clusters[2]", "clusters[2].name",
        "clusters[2].match.listeners[0]", "clusters[2].match.networks[0]", "clusters[2].login",
        "clusters[2].credentials", "shutdown_timeout", "log.level", "log.format", "log.access", "logs",
    }  # fmt: skip
    assert found["logs"] == "there is no such setting"
    assert found['upstreams."b.test".url'] == "this setting is required"
    assert "less than or equal to 64" in found["workers"]


@pytest.mark.parametrize(("written", "value"), [("public", "public"), ("true", True), ("no", False)])
def test_whether_a_cluster_has_the_credentials(load: Load, written: str, value: object) -> None:
    """All that they open, their rate limit, or nothing."""
    settings = load(UPSTREAM + f"clusters: [{{name: a, credentials: {written}}}]")
    assert settings.clusters[0].credentials == value


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ("limits: {max_header_size: 100B}", "limits.max_header_size"),
        ("limits: {max_url_length: 2MiB}", "limits.max_url_length"),
        ("limits: {max_body_size: 1MiB}", "limits.max_body_size"),
        ("limits: {header_timeout: 0}", "limits.header_timeout"),
        ("limits: {body_timeout: 0}", "limits.body_timeout"),
        ("limits: {idle_timeout: 0}", "limits.idle_timeout"),
        ("limits: {send_timeout: 0}", "limits.send_timeout"),
        ("limits: {max_connections: -1}", "limits.max_connections"),
        ("limits: {max_connections_per_client: 1.5}", "limits.max_connections_per_client"),
        ("clusters: [{name: a, repositories: []}]", "clusters[0].repositories"),
        ("clusters: [{name: a, repositories: ['']}]", "clusters[0].repositories[0]"),
        ("clusters: [{name: a, limits: {requests_per_second: 0}}]", "clusters[0].limits.requests_per_second"),
        ("clusters: [{name: a, limits: {requests_per_second: .inf}}]", "clusters[0].limits.requests_per_second"),
        ("clusters: [{name: a, limits: {bytes_per_second: 1KiB}}]", "clusters[0].limits.bytes_per_second"),
        ("clusters: [{name: a, limits: {bytes_per_second: 0}}]", "clusters[0].limits.bytes_per_second"),
    ],
)
def test_limits_that_would_stop_everybody_are_mistakes(load: Load, document: str, path: str) -> None:
    """Too little to serve anything, and 0 where it might be read as no limit."""
    assert list(mistakes(load, UPSTREAM + document)) == [path]


@pytest.mark.parametrize(("written", "share"), [("", 0.1), (", pull_reserve: 25%", 0.25), (", pull_reserve: 0", 0.0)])
def test_how_much_of_a_rate_limit_is_kept(load: Load, written: str, share: float) -> None:
    """A tenth, unless the file says otherwise."""
    settings = load(f"upstreams: {{a.test: {{url: 'http://a.test'{written}}}}}")
    assert settings.upstreams["a.test"].pull_reserve == share


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ("upstreams: {a.test: {url: 'http://a.test', pull_reserve: 10}}", 'upstreams."a.test".pull_reserve'),
        ("upstreams: {a.test: {url: 'http://a.test', pull_reserve: 101%}}", 'upstreams."a.test".pull_reserve'),
        (UPSTREAM + "clusters: [{name: background}]", "clusters[0].name"),
    ],
)
def test_mistakes_about_rate_limits(load: Load, document: str, path: str) -> None:
    """A share is a percentage; what the proxy asks for by itself is counted under a name that is no cluster's."""
    assert list(mistakes(load, document)) == [path]


@pytest.mark.parametrize(
    "credentials",
    ["{}", "{username: a}", "{password_file: a}", "{username: a, password_file: b, helper: c}",
     "{helper: a, docker_config: b}", "{helper: a, plugin: {command: b}}", "{timeout: 5s}",
     "{username: a, password_file: b, timeout: 5s}", "{username: a, password_file: b, environment: [A]}"],
)  # fmt: skip
def test_credentials_come_one_way(load: Load, credentials: str) -> None:
    """None, half of one, or two of them: a mistake."""
    document = f"upstreams: {{a.test: {{url: 'https://a.test', credentials: {credentials}}}}}"
    assert list(mistakes(load, document)) == ['upstreams."a.test".credentials']


@pytest.mark.parametrize(
    ("plugin", "path"),
    [
        ("{args: [a]}", "plugin.command"),
        ("{command: ''}", "plugin.command"),
        ("{command: a, args: b}", "plugin.args"),
        ("{command: a, env: [b]}", "plugin.env"),
        ("{command: a, matchImages: [b]}", "plugin.matchImages"),
        ("{command: a, default_cache_duration: 12h0m0s}", "plugin.default_cache_duration"),
        ("{command: a}, timeout: 21s", "timeout"),
        ("{command: a}, timeout: 0s", "timeout"),
        ("{command: a}, environment: AWS_*", "environment"),
    ],
)
def test_mistakes_about_a_plugin(load: Load, plugin: str, path: str) -> None:
    """Each at its place. Nobody can be let wait longer than 20 s for it."""
    document = f"upstreams: {{a.test: {{url: 'https://a.test', credentials: {{plugin: {plugin}}}}}}}"
    assert list(mistakes(load, document)) == [f'upstreams."a.test".credentials.{path}']


def test_a_plugins_words_may_look_like_numbers(load: Load) -> None:
    """In YAML they are without quotes; and what is in its environment is not shown."""
    plugin = "{command: a, args: [1, x], env: {TOKEN: 5071}}"
    document = f"upstreams: {{a.test: {{url: 'https://a.test', credentials: {{plugin: {plugin}}}}}}}"
    credentials = load(document).upstreams["a.test"].credentials
    assert credentials is not None
    assert credentials.plugin is not None
    assert (credentials.plugin.args, credentials.plugin.env) == (("1", "x"), {"TOKEN": "5071"})
    assert "5071" not in repr(credentials)


@pytest.mark.parametrize("helper", ["x/y", "../x", "a b", "", "a;b", "a\\n"])
def test_a_helpers_name_is_a_word(load: Load, helper: str) -> None:
    """It becomes part of a program's name, so it holds no slash."""
    document = f"upstreams: {{a.test: {{url: 'https://a.test', credentials: {{helper: \"{helper}\"}}}}}}"
    assert list(mistakes(load, document)) == ['upstreams."a.test".credentials.helper']


@pytest.mark.parametrize(
    "url",
    ["", "a.test", "//a.test", "https://", "ftp://a.test", "https://u:p@a.test", "https://@a.test", "https://a.test?x=1",
     "https://a.test#x", "https://a.test:99999", "https://a.test:x", "https://[::1", "5"],
)  # fmt: skip
def test_an_upstreams_url_is_scheme_host_port_and_path(load: Load, url: str) -> None:
    """No credentials, query or fragment, and a port that is one."""
    assert 'upstreams."a.test".url' in mistakes(load, f"upstreams: {{a.test: {{url: '{url}'}}}}")


@pytest.mark.parametrize(
    "name", ["", "a/b", "u@a.test", "a b", "https://a.test", "a?b", "a#b", "[::1", "a\\tb", ":5000", "a\\u2100b"]
)
def test_a_registrys_name_is_host_and_port(load: Load, name: str) -> None:
    """What an image's reference can begin with."""
    assert mistakes(load, f"upstreams: {{\"{name}\": {{url: 'https://a.test'}}}}")


@pytest.mark.parametrize("name", ["docker.io", "localhost", "registry.example:5000", "[::1]:5000", "10.0.0.1:5000"])
def test_registries_names_that_are_good(load: Load, name: str) -> None:
    """Lower-cased, port and brackets kept."""
    assert list(load(f"upstreams: {{\"{name.upper()}\": {{url: 'https://a.test/'}}}}").upstreams) == [name]


@pytest.mark.parametrize(
    "document",
    ["", "# nothing", "[]", "5", "text", "a: b: c", "a:\n\tb: 1", "{", "- a\n- b", "? [a]\n: b", "&a [*a]", "1: 2",
     "a: !!python/object/apply:os.system [id]", "a: 1\n---\nb: 2", "a: *unknown", "a: !thing 5", b"\xff\xfe\xfd",
     b"a: \0"],
)  # fmt: skip
def test_what_is_no_yaml_mapping_is_one_mistake_in_one_line(load: Load, document: str | bytes, tmp_path: Path) -> None:
    """With the file's name; no object of Python's is ever made out of YAML."""
    with pytest.raises(ConfigurationError) as caught:
        load(document)
    (mistake,) = caught.value.mistakes
    assert mistake.startswith(str(tmp_path))
    assert "\n" not in mistake


def test_a_key_given_twice_is_a_mistake(load: Load) -> None:
    """YAML parsers let the last one win, and nobody sees it."""
    for document in (
        UPSTREAM + "cache: {max_size: 1GiB, max_size: 2GiB}",
        UPSTREAM + "workers: 1\nworkers: 1",
        "upstreams:\n  a.test: {url: 'https://a.test'}\n  a.test: {url: 'https://b.test'}\n",
    ):
        with pytest.raises(ConfigurationError, match="is given twice"):
            load(document)


def test_a_file_that_cannot_be_read_is_one_mistake(tmp_path: Path) -> None:
    """Missing, or a folder."""
    for file in (tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(ConfigurationError) as caught:
            load_settings(file)
        assert len(caught.value.mistakes) == 1
        assert str(file) in caught.value.mistakes[0]


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["listen", "admin", "address", "cache", "upstreams", "a.test", "url", "aliases", "default",
                         "clusters", "name", "match", "listeners", "upstreams", "manifests", "tag_rules"]),
        inner, max_size=4,
    ),
    max_leaves=12,
))  # fmt: skip
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_any_document_loads_or_is_a_list_of_mistakes(load: Load, document: object) -> None:
    """Values of any type in any place: the checks between keys tolerate them all."""
    import json

    try:
        load(json.dumps(document))
    except ConfigurationError as error:
        assert error.mistakes


def test_relative_paths_start_from_the_files_folder(load: Load, tmp_path: Path) -> None:
    """The cache directory alone starts from the working directory; absolute paths stay."""
    document = """
admin: {token_file: token}
cache: {directory: data}
upstreams:
  a.test: {url: 'https://a.test', ca: ca.crt, credentials: {username: me, password_file: sub/pw}}
  b.test: {url: 'https://b.test', ca: /etc/ca.crt, credentials: {docker_config: config.json}}
  c.test: {url: 'https://c.test', credentials: {plugin: {command: bin/ecr}}}
  d.test: {url: 'https://d.test', credentials: {plugin: {command: ecr}}}
"""
    settings = load(document)
    commands = [
        one.credentials.plugin.command
        for one in settings.upstreams.values()
        if one.credentials is not None and one.credentials.plugin is not None
    ]
    # One without a slash is looked for along PATH.
    assert commands == [str(tmp_path / "bin/ecr"), "ecr"]
    a, b = settings.upstreams["a.test"], settings.upstreams["b.test"]
    assert a.credentials is not None
    assert b.credentials is not None
    assert settings.admin.token_file == tmp_path / "token"
    assert settings.cache.directory == Path("data")
    assert (a.ca, a.credentials.password_file) == (tmp_path / "ca.crt", tmp_path / "sub/pw")
    assert (b.ca, b.credentials.docker_config) == (Path("/etc/ca.crt"), tmp_path / "config.json")


def test_the_environment_wins_over_the_file(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """One key each, its siblings in the file stay; lists and tables as JSON; upper and lower case alike."""
    for name, value in {
        "PULLTHROUGH_CACHE__DIRECTORY": "/data",
        "PULLTHROUGH_MANIFESTS__TAG_TTL": "1h",
        "pullthrough_log__access": "false",
        "PULLTHROUGH_SHUTDOWN_TIMEOUT": "5s",
        "PULLTHROUGH_TRUSTED_PROXIES": '["10.0.0.0/8"]',
        "PULLTHROUGH_UPSTREAMS__A.TEST__PARALLEL": "2",
    }.items():
        monkeypatch.setenv(name, value)
    settings = load(UPSTREAM + "cache: {directory: here, max_size: 5GiB}")
    assert (settings.cache.directory, settings.cache.max_size) == (Path("/data"), 5 << 30)
    assert (settings.manifests.tag_ttl, settings.log.access, settings.shutdown_timeout) == (3600, False, 5)
    assert [str(network) for network in settings.trusted_proxies] == ["10.0.0.0/8"]
    assert settings.upstreams["a.test"].parallel == 2
    assert settings.upstreams["a.test"].url == "https://a.test"


def test_a_mistake_in_the_environment_has_its_settings_path(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reported like the file's, together with the file's."""
    monkeypatch.setenv("PULLTHROUGH_CACHE__MAX_SIZE", "big")
    monkeypatch.setenv("PULLTHROUGH_CACHE__NOPE", "1")
    assert set(mistakes(load, UPSTREAM + "workers: 0")) == {"cache.max_size", "cache.nope", "workers"}


def test_kubernetes_variables_are_no_settings(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes injects these into every pod beside Services called pullthrough and pullthrough-admin."""
    for name in ("PULLTHROUGH_PORT", "PULLTHROUGH_SERVICE_HOST", "PULLTHROUGH_ADMIN_PORT", "PULLTHROUGH_PORT_5000_TCP"):
        monkeypatch.setenv(name, "tcp://10.0.0.1:5000")
    assert load(UPSTREAM).admin.address.port == 5001


def test_settings_cannot_be_changed(load: Load) -> None:
    """They are shared by everything that runs."""
    with pytest.raises(ValueError, match="frozen"):
        load(UPSTREAM).shutdown_timeout = 1  # type: ignore[misc]


@pytest.mark.parametrize("value", ["2024-13-45", "0b_", "9" * 5000, "[" * 3000])
def test_scalars_that_yaml_cannot_construct_are_mistakes(load: Load, value: str) -> None:
    """A date that is none, a binary number without digits, too many digits, too deep: not a traceback."""
    with pytest.raises(ConfigurationError):
        load(f"{UPSTREAM}workers: {value}\n")


@pytest.mark.parametrize("key", ["_env_prefix", "_cli_parse_args", "_env_file", "_build_sources", "__pydantic_self__"])
def test_a_key_with_an_underscore_is_unknown(load: Load, key: str) -> None:
    """`_env_prefix: X` silently renames the environment variables, `_cli_parse_args: true` reads sys.argv."""
    assert mistakes(load, f"{UPSTREAM}{key}: null\n") == {key: "there is no such setting"}


def test_one_worker_may_be_said_in_the_environment(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """`PULLTHROUGH_WORKERS=1` is the default, spelt out."""
    monkeypatch.setenv("PULLTHROUGH_WORKERS", "1")
    assert load(UPSTREAM).workers == 1


def test_an_unreadable_variable_hides_no_other_mistake(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """All mistakes at once, and the variable's by its name."""
    monkeypatch.setenv("PULLTHROUGH_TRUSTED_PROXIES", "10.0.0.0/8")
    assert {"trusted_proxies", "nope"} <= set(mistakes(load, UPSTREAM + "nope: 1"))


def test_mistakes_between_keys_are_found_in_the_environment_too(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is what would run."""
    monkeypatch.setenv("PULLTHROUGH_CLUSTERS", '[{"name": "a"}, {"name": "a"}]')
    assert "clusters[1].name" in mistakes(load, UPSTREAM)


def test_two_upstreams_that_differ_in_case_only_are_a_mistake(load: Load) -> None:
    """Names are lower-cased, so they are the same registry given twice."""
    mistakes(load, "upstreams: {a.test: {url: 'https://a.test'}, A.test: {url: 'https://b.test'}}")


def test_two_defaults_are_a_mistake_however_true_is_written(load: Load) -> None:
    """The first one would win, and nobody sees it."""
    document = "upstreams: {a: {url: 'https://a', default: 'true'}, b: {url: 'https://b', default: 1}}"
    assert "upstreams.b.default" in mistakes(load, document)


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ("clusters: [{name: a, match: {listeners: ['0.0.0.0:9999']}}]", "clusters[0].match.listeners[0]"),
        ("listen: [{address: '127.0.0.1:5001'}]", "admin.address"),
    ],
)
def test_listeners_are_held_against_the_defaults(load: Load, document: str, path: str) -> None:
    """What the file leaves out has a default, which can contradict what it says."""
    assert path in mistakes(load, UPSTREAM + document)


def test_yaml_merge_keys_work(load: Load) -> None:
    """`<<: *base` is how people share keys between upstreams."""
    document = "upstreams: {a.test: &base {url: 'https://a.test'}, b.test: {<<: *base, parallel: 2}}"
    assert load(document).upstreams["b.test"].url == "https://a.test"


def test_unknown_keys_with_names_of_types_keep_their_path(load: Load) -> None:
    """`str` and `int` are two mistakes with two paths, not one without."""
    assert set(mistakes(load, UPSTREAM + "str: 1\nint: 2")) == {"str", "int"}


@pytest.mark.parametrize(
    "upstream",
    ["url: 'https://a.test?'", "url: 'https://a b'", "url: 'https://a.test '", "url: 'https://a..b'",
     "url: 'https://a.test', proxy: 'http://p:99999'", "url: 'https://a.test', connect_timeout: 0s",
     "url: 'https://a.test', read_timeout: 0s", "url: 'https://a.test', aliases: ['r:abc']"],
)  # fmt: skip
def test_what_could_never_be_dialled_is_a_mistake(load: Load, upstream: str) -> None:
    """Blanks and empty labels in a host, a port that is none; a timeout of 0, which aiohttp reads as none at all."""
    mistakes(load, f"upstreams: {{a.test: {{{upstream}}}}}")


def test_shares_and_what_is_kept(load: Load) -> None:
    """Percent become parts; up to all of the cache may be guaranteed."""
    settings = load(
        "cache: {keep: ['docker.io/library/base*']}\n"
        "upstreams: {a.test: {url: 'https://a.test', cache_share: 30%},"
        "            b.test: {url: 'https://b.test', cache_share: 70%}}\n"
        "clusters: [{name: a, match: {hosts: [h]}, cache_share: 12.5%}, {name: b}]\n"
    )
    assert settings.cache.keep == ("docker.io/library/base*",)
    assert [upstream.cache_share for upstream in settings.upstreams.values()] == [0.3, 0.7]
    assert [cluster.cache_share for cluster in settings.clusters] == [0.125, 0.0]


def test_more_than_all_cannot_be_guaranteed(load: Load) -> None:
    """Registries among themselves, clusters among themselves; where the sum goes over it is said."""
    found = mistakes(
        load,
        "cache: {keep: ['']}\n"
        "upstreams: {a.test: {url: 'https://a.test', cache_share: 60%},"
        "            b.test: {url: 'https://b.test', cache_share: 41%}}\n"
        "clusters: [{name: a, match: {hosts: [h]}, cache_share: 100%}, {name: b, cache_share: 1%, login: x}]\n",
    )
    assert found['upstreams."b.test".cache_share'] == "the shares of all registries are more than 100%"
    assert found["clusters[1].cache_share"] == "the shares of all clusters are more than 100%"
    assert "cache.keep[0]" in found


PLAIN = "{address: '0.0.0.0:1'}"
TLS = "{address: '0.0.0.0:2', tls: {certificate: a, key: b}}"
ASKS = "{address: '0.0.0.0:3', tls: {certificate: a, key: b, client_ca: c}}"


@pytest.mark.parametrize(
    ("listen", "match", "good"),
    [
        (f"[{PLAIN}, {ASKS}]", "{certificates: [x]}", True),
        (f"[{PLAIN}, {ASKS}]", "{certificates: [x], listeners: ['0.0.0.0:1', '0.0.0.0:3']}", True),
        (f"[{PLAIN}, {ASKS}]", "{certificates: [x], listeners: ['0.0.0.0:1']}", False),
        (f"[{PLAIN}, {TLS}]", "{certificates: [x]}", False),
        (f"[{PLAIN}]", "{certificates: [x], networks: [10.0.0.0/8]}", False),
    ],
)
def test_a_cluster_by_certificate_needs_a_listener_that_asks(load: Load, listen: str, match: str, good: bool) -> None:
    """One of its own listeners, where it names some."""
    document = UPSTREAM + f"listen: {listen}\nclusters: [{{name: a, match: {match}}}]"
    if good:
        cluster = load(document).clusters[0]
        assert cluster.match is not None
        assert cluster.match.certificates == ("x",)
    else:
        assert list(mistakes(load, document)) == ["clusters[0].match.certificates"]


@pytest.mark.parametrize(
    ("tls", "path"),
    [
        ("{certificate: a}", "listen[0].tls.key"),
        ("{key: a}", "listen[0].tls.certificate"),
        ("{certificate: a, key: b, client_auth: required}", "listen[0].tls"),
        ("{certificate: a, key: b, client_ca: c, client_auth: maybe}", "listen[0].tls.client_auth"),
        ("{certificate: a, key: b, ca: c}", "listen[0].tls.ca"),
        ("true", "listen[0].tls"),
    ],
)
def test_tls_of_a_listener_is_whole(load: Load, tls: str, path: str) -> None:
    """Certificate and key; who is to show a certificate needs somebody who vouches for it."""
    assert list(mistakes(load, UPSTREAM + f"listen: [{{address: '0.0.0.0:1', tls: {tls}}}]")) == [path]


def test_files_of_a_listener_are_in_the_files_folder(load: Load, tmp_path: Path) -> None:
    """Relative ones, as all others."""
    listen = "{address: '0.0.0.0:3', tls: {certificate: a, key: /b, client_ca: c/d}}"
    tls = load(UPSTREAM + f"listen: [{listen}]").listen[0].tls
    assert tls is not None
    assert (tls.certificate, tls.key, tls.client_ca) == (tmp_path / "a", Path("/b"), tmp_path / "c" / "d")
    assert tls.client_auth == "required"
