"""What deploy/ and docker-compose.cluster.yml say, judged by the programs that read it: HAProxy, Valkey, Prometheus,
Helm, and the proxy itself; and the shipped files at work, with a replica that dies behind the load balancer."""

import asyncio
import contextlib
import http.client
import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import yaml

from proxy import __version__
from proxy.settings import Settings, load_settings
from proxy.telemetry.metrics import Metrics
from tests.clients.process import CLIENTS_BIN, ROOT, Daemon, environment, free_port, program, run, wait_for
from tests.clients.proxy_process import PULLTHROUGH, REGISTRY
from tests.clients.replicas import MIB, CountingOrigin, Load, Replicas
from tests.clients.s3 import ACCESS, SECRET, S3Server
from tests.clients.valkey import Refused, ValkeyServer
from tests.clients.wire import answers, ask

DEPLOY = ROOT / "deploy"
COMPOSE = ROOT / "docker-compose.cluster.yml"
CHART = DEPLOY / "helm" / "pullthrough"
FULL = CHART / "ci" / "full-values.yaml"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "pullthrough.json"

Document = dict[str, Any]

# The compose file.


@pytest.fixture(scope="module")
def services() -> Document:
    """The services of the cluster, as Debian's docker-compose 1.29 understands them."""
    read: Document = yaml.safe_load(run("docker-compose", "--file", COMPOSE, "config"))
    return dict(read["services"])


def mounted(service: Document) -> list[str]:
    return [mount.partition(":")[0] for mount in service.get("volumes", [])]


def test_the_cluster_is_all_there(services: Document) -> None:
    """Three replicas and what they need; whatever is mounted from here exists, secrets too."""
    replicas = {name for name in services if name.startswith("replica-")}
    assert len(replicas) == 3
    others = {"haproxy", "valkey", "objects", "bucket", "prometheus", "grafana"}
    assert set(services) - replicas == others
    sources = [source for service in services.values() for source in mounted(service) if source.startswith("/")]
    secrets = [entry["file"] for entry in yaml.safe_load(COMPOSE.read_text())["secrets"].values()]
    assert [source for source in (*sources, *(ROOT / file for file in secrets)) if not Path(source).exists()] == []


def test_nothing_is_published_beyond_this_machine(services: Document) -> None:
    """Everybody has the demo's secrets: each port that is published is on loopback, and none of them twice."""
    ports = [str(port) for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert len(set(ports)) == len(ports)


def test_replicas_differ_in_name_and_cache_alone(services: Document) -> None:
    """Each has a volume of its own and tells the others its own name; all else is the same. One builds the image."""
    replicas = {name: service for name, service in services.items() if name.startswith("replica-")}
    caches = {mount for service in replicas.values() for mount in mounted(service) if mount.startswith("cache")}
    assert len(caches) == len(replicas)
    assert sum("build" in service for service in replicas.values()) == 1
    for name, service in replicas.items():
        assert service["environment"].pop("PULLTHROUGH_SHARED__ADVERTISE") == f"http://{name}:5002"
        for key in ("volumes", "build", "depends_on"):
            service.pop(key, None)
        assert service == replicas["replica-1"]


def test_a_replica_of_the_cluster_has_a_good_configuration(services: Document, tmp_path: Path) -> None:
    """With its environment, `check-config` has nothing to say; it knows the shipped registries, believes HAProxy and
    nobody else, and speaks to Valkey as the user that the access list has."""
    file = DEPLOY / "compose" / "proxy.yaml"
    variables = {key: str(value) for key, value in services["replica-2"]["environment"].items()}
    checked = subprocess.run(
        [PULLTHROUGH, "check-config", file], env=environment(variables), capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")
    settings, shipped = load_settings(file, variables), load_settings(ROOT / "config" / "proxy.yaml", {})
    assert settings.upstreams == shipped.upstreams
    address = services["haproxy"]["networks"]["default"]["ipv4_address"]
    assert [str(network) for network in settings.trusted_proxies] == [f"{address}/32"]
    assert settings.shared.metadata is not None
    assert settings.shared.blobs is not None
    user = urlsplit(settings.shared.metadata)
    assert f"user {user.username} on >{user.password} " in (DEPLOY / "compose" / "users.acl").read_text()
    assert services["objects"]["environment"]["ROOT_SECRET_KEY"] == variables["AWS_SECRET_ACCESS_KEY"]
    assert services["bucket"]["entrypoint"][-1] == f"/data/{urlsplit(settings.shared.blobs).hostname}"


def test_the_object_store_is_the_one_that_is_tested(services: Document) -> None:
    """The compose file's versitygw is the one that tests/clients/install.sh builds."""
    (version,) = re.findall(r"^VERSITYGW=(\S+)$", (ROOT / "tests/clients/install.sh").read_text(), re.MULTILINE)
    assert {services[name]["image"] for name in ("objects", "bucket")} == {f"versity/versitygw:{version}"}


# The load balancer.


def test_haproxy_takes_its_configuration() -> None:
    """`haproxy -c` is content; that the replicas cannot be looked up here is all that it warns of."""
    words = [program("haproxy"), "-c", "-f", str(DEPLOY / "compose" / "haproxy.cfg")]
    said = subprocess.run(words, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    warnings = [line for line in said.stderr.splitlines() if "[WARNING]" in line]
    assert [line for line in warnings if "could not resolve address" not in line] == []


# The metadata store.


def allowed(text: str) -> list[str]:
    """What the proxy's user may do, by a text that has its rule."""
    (rule,) = re.findall(r"^ *user pullthrough on >\S+ (.*(?:\n +\+.*)*)", text, re.MULTILINE)
    return str(rule).split()


def test_the_access_list_has_what_the_proxy_calls() -> None:
    """By scripts and by the client, also what is needed once a week; and it is the one that docs/scale.md has."""
    rule = allowed((DEPLOY / "compose" / "users.acl").read_text())
    storage = "".join(file.read_text() for file in sorted((ROOT / "proxy" / "storage").glob("*.py")))
    called = {name.lower() for name in re.findall(r"redis\.p?call\('([A-Za-z]+)'", storage)}
    called |= set(re.findall(r"\b(?:client|pipeline|watching)\.([a-z]+)\(", storage)) - {"pipeline", "pubsub", "aclose"}
    called.discard("execute")
    assert {"mget", "pexpire", "getrange", "subscribe"} <= called
    assert {f"+{name}" for name in called} <= set(rule)
    assert allowed((ROOT / "docs" / "scale.md").read_text()) == rule


# The alerts and the dashboard.


def metric_names() -> set[str]:
    """Every name that /metrics has, with those that Prometheus makes itself."""
    names = {"up", "ALERTS"}
    for metric in Metrics().collect():
        names |= {metric.name, f"{metric.name}_total"} if metric.type == "counter" else {metric.name}
        if metric.type == "histogram":
            names |= {f"{metric.name}_{end}" for end in ("bucket", "count", "sum")}
    return names


def named_in(expression: str) -> set[str]:
    """The metrics that an expression asks for: words that stand before labels or a range."""
    return set(re.findall(r"\b([a-z][a-z_0-9]+)\s*[{\[]", expression)) | set(re.findall(r"pullthrough_\w+", expression))


def rules() -> list[Document]:
    """All alerts."""
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[Document]:
    """All panels of the dashboard."""
    found: list[Document] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expressions() -> list[str]:
    """All that the dashboard asks Prometheus for, with what Grafana puts in the place of its variables."""
    asked = [target["expr"] for panel in panels() for target in panel.get("targets", [])]
    filled = {"$__rate_interval": "1m", "$__range": "1h", "$instance": ".*"}
    return [re.sub(r"\$__rate_interval|\$__range|\$instance", lambda found: filled[found[0]], one) for one in asked]


def test_alerts_and_dashboard_ask_for_metrics_that_there_are() -> None:
    """Each metric that they name is one that the proxy has."""
    names = metric_names()
    assert {name for rule in rules() for name in named_in(rule["expr"])} <= names
    assert {name for one in expressions() for name in named_in(one)} <= names


def test_an_alert_says_what_to_do() -> None:
    """Each has one of three severities, a summary and a description, and a name of its own."""
    alerts = rules()
    assert len({rule["alert"] for rule in alerts}) == len(alerts)
    assert {rule["labels"]["severity"] for rule in alerts} == {"critical", "warning", "info"}
    assert all(set(rule["annotations"]) == {"summary", "description"} for rule in alerts)


def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    """`promtool check config` is content with what the cluster's Prometheus reads, the alerts included."""
    shipped = (DEPLOY / "compose" / "prometheus.yml").read_text()
    file = tmp_path / "prometheus.yml"
    file.write_text(shipped.replace("/etc/prometheus/alerts.yml", str(ALERTS)))
    run("promtool", "check", "config", file)


HEALTHY = {
    'up{job="pullthrough",instance="a"}': "1+0x120",
    'up{job="pullthrough",instance="b"}': "1+0x120",
    'pullthrough_shared_up{job="pullthrough",instance="a",store="metadata"}': "1+0x120",
    'pullthrough_shared_up{job="pullthrough",instance="b",store="blobs"}': "1+0x120",
    'pullthrough_requests_total{job="pullthrough",instance="a",registry="r",status="200"}': "0+100x120",
    'pullthrough_requests_total{job="pullthrough",instance="a",registry="r",status="404"}': "0+100x120",
    'pullthrough_object_mismatches_total{job="pullthrough",instance="a"}': "0+0x120",
    'pullthrough_object_uploads_total{job="pullthrough",instance="a",outcome="stored"}': "0+3x120",
    'pullthrough_evictions_total{job="pullthrough",instance="a",reason="size"}': "0+3x120",
    'pullthrough_event_loop_lag_seconds{job="pullthrough",instance="a"}': "0.01+0x120",
    'pullthrough_upstream_ratelimit_remaining{job="pullthrough",instance="a",registry="r"}': "60+0x120",
    'pullthrough_upstream_ratelimit_limit{job="pullthrough",instance="a",registry="r"}': "100+0x120",
    'pullthrough_upstream_pulls_total{job="pullthrough",instance="a",registry="r",cluster="c"}': "0+1x120",
    'pullthrough_tag_drift{job="pullthrough",instance="a",registry="r"}': "0+0x120",
}

# What is otherwise than in HEALTHY, from the beginning or from minute 100 on, and which alerts stand at minute 110.
TROUBLES: dict[str, tuple[dict[str, str], dict[str, int]]] = {
    "one replica is down": ({'up{job="pullthrough",instance="b"}': "1x100 0x20"}, {"PullthroughReplicaDown": 1}),
    "all are down": (
        {f'up{{job="pullthrough",instance="{name}"}}': "1x100 0x20" for name in "ab"},
        {"PullthroughReplicaDown": 2, "PullthroughAllReplicasDown": 1},
    ),
    "nobody is there": (
        {f'up{{job="pullthrough",instance="{name}"}}': "1x20 _x100" for name in "ab"},
        {"PullthroughAllReplicasDown": 1},
    ),
    "a store is away": (
        {'pullthrough_shared_up{job="pullthrough",instance="b",store="blobs"}': "1x100 0x20"},
        {"PullthroughSharedStoreAway": 1},
    ),
    "a store was away for a moment": (
        {'pullthrough_shared_up{job="pullthrough",instance="b",store="blobs"}': "1x100 0 0 0 1x20"},
        {},
    ),
    "the metadata store is full": (
        {
            'pullthrough_shared_errors_total{job="pullthrough",instance="a",store="metadata",reason="full"}': (
                "_x80 1+1x40"
            )
        },
        {"PullthroughSharedStoreFull": 1},
    ),
    "an object is wrong": (
        {'pullthrough_object_mismatches_total{job="pullthrough",instance="a"}': "0x100 1x20"},
        {"PullthroughObjectMismatches": 1},
    ),
    "uploads fail": (
        {'pullthrough_object_uploads_total{job="pullthrough",instance="a",outcome="failed"}': "0+2x120"},
        {"PullthroughUploadsFail": 1},
    ),
    "a registry's first wrong bytes": (
        {'pullthrough_digest_mismatches_total{job="pullthrough",instance="a",registry="r"}': "_x100 1x20"},
        {"PullthroughDigestMismatches": 1},
    ),
    "more wrong bytes": (
        {'pullthrough_digest_mismatches_total{job="pullthrough",instance="a",registry="r"}': "3x100 4x20"},
        {"PullthroughDigestMismatches": 1},
    ),
    "wrong bytes long ago": (
        {'pullthrough_digest_mismatches_total{job="pullthrough",instance="a",registry="r"}': "_x20 3x100"},
        {},
    ),
    "the limit is nearly used up": (
        {'pullthrough_upstream_ratelimit_remaining{job="pullthrough",instance="a",registry="r"}': "60x90 5x30"},
        {"PullthroughPullsNearlyGone": 1},
    ),
    "it was, but nobody has pulled for long": (
        {
            'pullthrough_upstream_ratelimit_remaining{job="pullthrough",instance="a",registry="r"}': "5x120",
            'pullthrough_upstream_pulls_total{job="pullthrough",instance="a",registry="r",cluster="c"}': "95x120",
        },
        {},
    ),
    "many requests fail": (
        {'pullthrough_requests_total{job="pullthrough",instance="a",registry="r",status="500"}': "0+20x120"},
        {"PullthroughErrors": 1},
    ),
    "an upstream fails": (
        {
            'pullthrough_requests_total{job="pullthrough",instance="a",registry="s",status="502"}': "0+5x120",
            'pullthrough_requests_total{job="pullthrough",instance="a",registry="s",status="504"}': "0+5x120",
        },
        {"PullthroughUpstreamFails": 1},
    ),
    "the disk is small": (
        {'pullthrough_evictions_total{job="pullthrough",instance="a",reason="free"}': "0+3x120"},
        {"PullthroughDiskNearlyFull": 1},
    ),
    "a loop lags": (
        {'pullthrough_event_loop_lag_seconds{job="pullthrough",instance="a"}': "0.01x80 0.4x40"},
        {"PullthroughEventLoopLag": 1},
    ),
    "a loop lagged for a moment": (
        {'pullthrough_event_loop_lag_seconds{job="pullthrough",instance="a"}': "0.01x106 0.4 0.4 0.01x12"},
        {},
    ),
    "a tag has moved": (
        {'pullthrough_tag_drift{job="pullthrough",instance="a",registry="r"}': "0x20 2x100"},
        {"PullthroughTagDrift": 1},
    ),
}


def test_each_alert_stands_when_it_should_and_only_then(tmp_path: Path) -> None:
    """A healthy region has none; each trouble has its own, and no other one. Every alert has a trouble here."""
    assert {name for _, stand in TROUBLES.values() for name in stand} == {rule["alert"] for rule in rules()}
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in (HEALTHY | series).items()],
            "promql_expr_test": [
                {
                    "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                    "eval_time": "110m",
                    "exp_samples": [
                        {"labels": f'{{alertname="{name}"}}', "value": count} for name, count in stand.items()
                    ],
                }
            ],
        }
        for series, stand in (({}, {}), *TROUBLES.values())
    ]
    file = tmp_path / "tests.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests}))
    run("promtool", "test", "rules", file)


def test_the_dashboard_can_be_drawn(tmp_path: Path) -> None:
    """Panels have ids of their own, a title and a place that no other one has; Prometheus understands what they ask."""
    found = panels()
    assert len({panel["id"] for panel in found}) == len(found)
    assert all(panel["title"] for panel in found)
    places = [
        (x, y)
        for grid in (panel["gridPos"] for panel in found)
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(set(places)) == len(places)
    assert max(x for x, _ in places) < 24
    asked = [{"record": f"panel:{number}", "expr": one} for number, one in enumerate(expressions())]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": asked}]}))
    run("promtool", "check", "rules", "--lint-fatal", file)


def test_grafana_is_given_the_dashboard_and_its_data() -> None:
    """The provisioned data source is the one that the dashboard chooses, and the provider reads where it is mounted."""
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "pullthrough.yaml").read_text())["providers"]
    variables = {one["name"]: one for one in json.loads(DASHBOARD.read_text())["templating"]["list"]}
    assert variables["datasource"]["current"]["value"] == source["uid"]
    used = {panel["datasource"]["uid"] for panel in panels() if panel["type"] != "row"}
    assert used == {"${datasource}"}
    mounts = yaml.safe_load(COMPOSE.read_text())["services"]["grafana"]["volumes"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in mounts


# The chart.


def helm(*words: str | Path) -> str:
    return run("helm", *words)


def refused(*words: str | Path) -> str:
    """What Helm says of values that it does not take."""
    done = subprocess.run(
        [program("helm"), "template", "region", str(CHART), *map(str, words)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0, done.stdout[:500]
    return done.stderr


def rendered(*words: str | Path) -> list[Document]:
    """The chart's objects, as they would be installed into the namespace `registry`."""
    text = helm("template", "region", CHART, "--namespace", "registry", *words)
    return [document for document in yaml.safe_load_all(text) if document]


VALUES: dict[str, Sequence[str | Path]] = {
    "default": (),
    "full": ("--values", FULL),
    "alone": ("--set", "secrets.metadata.name=,secrets.region.name=,config.shared.secret_file=null,replicaCount=1"),
}


@pytest.fixture(scope="module", params=list(VALUES))
def objects(request: pytest.FixtureRequest) -> list[Document]:
    """The objects of the chart with its own values, with everything said, and for one replica that shares nothing."""
    return rendered(*VALUES[request.param])


def one(objects: Sequence[Document], kind: str, end: str = "") -> Document:
    (found,) = [item for item in objects if item["kind"] == kind and item["metadata"]["name"].endswith(end)]
    return found


def pod(objects: Sequence[Document]) -> Document:
    """What the StatefulSet makes its pods of."""
    made: Document = one(objects, "StatefulSet")["spec"]["template"]["spec"]
    return made


@pytest.fixture(scope="module")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kubernetes' own schemas by version, as files that name each other: as they are shipped they name a web site."""
    shipped, made = CLIENTS_BIN.parent / "kubernetes-schemas", tmp_path_factory.mktemp("schemas")
    kinds = [
        "configmap-v1", "service-v1", "serviceaccount-v1", "statefulset-apps-v1", "networkpolicy-networking-v1",
        "poddisruptionbudget-policy-v1",
    ]  # fmt: skip
    for version in ("1.27.0", "1.37.0"):
        (made / version).mkdir()
        for name in ("_definitions", *kinds):
            text = (shipped / f"v{version}-local-strict" / f"{name}.json").read_text()
            schema = json.loads(text.replace("/api/_definitions.json", "_definitions.json"))
            schema.pop("$id", None)
            (made / version / f"{name}.json").write_text(json.dumps(schema))
    return made


def judged(schemas: Path, version: str, objects: Sequence[Document]) -> tuple[int, Document]:
    """kubeconform's exit code, and what it says in short."""
    place = f"{schemas / version}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
    words = [program("kubeconform"), "-strict", "-summary", "-output", "json", "-schema-location", place, "-"]
    done = subprocess.run(words, input=yaml.safe_dump_all(objects), capture_output=True, text=True, check=False)
    said: Document = json.loads(done.stdout)
    return done.returncode, said


@pytest.mark.parametrize("version", ["1.27.0", "1.37.0"])
def test_kubernetes_takes_every_object(objects: list[Document], schemas: Path, version: str) -> None:
    """Each object is what the oldest and the newest Kubernetes expect, and has no key that they do not know; an object
    that has one is refused. What the Prometheus operator takes is judged by itself, below."""
    own = [item for item in objects if not item["apiVersion"].startswith("monitoring.")]
    code, said = judged(schemas, version, own)
    assert code == 0, said["resources"]
    assert said["summary"] == {"valid": len(own), "invalid": 0, "errors": 0, "skipped": 0}
    spoilt = json.loads(json.dumps(one(objects, "StatefulSet")))
    spoilt["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    assert judged(schemas, version, [spoilt])[1]["summary"]["invalid"] == 1


@pytest.mark.parametrize("name", list(VALUES))
def test_helm_has_nothing_to_say(name: str) -> None:
    """`helm lint --strict`."""
    helm("lint", "--strict", CHART, *VALUES[name])


def test_the_rendered_configuration_is_good(objects: list[Document], tmp_path: Path) -> None:
    """The ConfigMap has a proxy.yaml that `check-config` takes; what needs a file of the pod's is all it warns of."""
    file = tmp_path / "proxy.yaml"
    file.write_text(one(objects, "ConfigMap")["data"]["proxy.yaml"])
    words = [str(PULLTHROUGH), "check-config", str(file)]
    checked = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert [line for line in checked.stderr.splitlines() if "/etc/pullthrough/" not in line] == []
    settings = load_settings(file, {})
    container = pod(objects)["containers"][0]
    assert str(settings.cache.directory) in {mount["mountPath"] for mount in container["volumeMounts"]}
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["client"] == settings.listen[0].address.port
    assert (ports["admin"], ports["replicas"]) == (settings.admin.address.port, settings.shared.listen.port)
    assert len(ports) == len(settings.listen) + 2


def test_the_chart_knows_the_shipped_registries() -> None:
    """Its default configuration has those of config/proxy.yaml, and serves them in the same way."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    shipped = yaml.safe_load((ROOT / "config" / "proxy.yaml").read_text())
    assert values["config"]["upstreams"] == shipped["upstreams"]
    assert values["config"]["shutdown_timeout"] == shipped["shutdown_timeout"]


def test_a_pod_is_confined_and_ends_in_peace(objects: list[Document]) -> None:
    """Not root, nothing writable but its volumes, no token, no environment of other Services, whose names may begin as
    the program's own; it is killed later than its bodies may end."""
    spec = pod(objects)
    container = spec["containers"][0]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert spec["enableServiceLinks"] is False
    assert spec["automountServiceAccountToken"] is False
    timeout = {"60s": 60, "1.5m": 90}[
        yaml.safe_load(one(objects, "ConfigMap")["data"]["proxy.yaml"])["shutdown_timeout"]
    ]
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert spec["terminationGracePeriodSeconds"] > timeout + pause
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/healthz",
        "liveness": "/healthz",
        "readiness": "/readyz",
    }
    assert {probe["port"] for probe in probes.values()} == {"admin"}


def test_replicas_are_told_their_own_name() -> None:
    """It is that of the pod in the headless Service, which has pods that are not ready as well; up to 64 characters of
    an address are kept cheaply in Valkey."""
    objects = rendered("--set", "fullnameOverride=pullthrough")
    (advertise,) = [
        entry["value"]
        for entry in pod(objects)["containers"][0]["env"]
        if entry["name"] == "PULLTHROUGH_SHARED__ADVERTISE"
    ]
    headless, stateful = one(objects, "Service", "-replicas"), one(objects, "StatefulSet")
    assert advertise == f"http://$(POD_NAME).{headless['metadata']['name']}.registry.svc:5002"
    assert len(advertise.replace("$(POD_NAME)", f"{stateful['metadata']['name']}-0")) <= 64
    assert stateful["spec"]["serviceName"] == headless["metadata"]["name"]
    assert (headless["spec"]["clusterIP"], headless["spec"]["publishNotReadyAddresses"]) == ("None", True)
    assert stateful["spec"]["podManagementPolicy"] == "Parallel"


def test_who_shares_nothing_has_nothing_to_share() -> None:
    """One replica by itself has no other's address, no secret of a region, and nobody but clients and Prometheus comes
    in."""
    objects = rendered(*VALUES["alone"])
    names = {entry["name"] for entry in pod(objects)["containers"][0]["env"]}
    assert names == {"PULLTHROUGH_CACHE__DIRECTORY"}
    ingress = one(objects, "NetworkPolicy")["spec"]["ingress"]
    assert [port["port"] for rule in ingress for port in rule["ports"]] == [5000, 5001]


def test_every_selector_finds_the_pods(objects: list[Document]) -> None:
    """Services, the disruption budget, the policy and the spread go by labels that pods have."""
    template = one(objects, "StatefulSet")["spec"]["template"]
    labels = template["metadata"]["labels"].items()
    selectors = [item["spec"]["selector"] for item in objects if item["kind"] == "Service"]
    selectors += [
        one(objects, kind)["spec"]["selector"]["matchLabels"] for kind in ("StatefulSet", "PodDisruptionBudget")
    ]
    selectors += [spread["labelSelector"]["matchLabels"] for spread in template["spec"]["topologySpreadConstraints"]]
    selectors.append(one(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"])
    assert all(selector and selector.items() <= labels for selector in selectors)


def test_a_changed_configuration_replaces_the_pods() -> None:
    """The pods' annotation is another one when `config` is, and only then."""
    notes = [
        one(rendered(*words), "StatefulSet")["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
        for words in ((), ("--set", "config.log.level=debug"), ("--set", "replicaCount=5"))
    ]
    assert notes[0] != notes[1]
    assert notes[0] == notes[2]


def test_prometheus_finds_the_replicas_and_has_the_alerts() -> None:
    """The ServiceMonitor selects the admin Service's port, and gives the job that alerts and dashboard go by; the rules
    are those of deploy/prometheus, of which the chart's file is a copy."""
    objects = rendered("--values", FULL)
    monitor, service = one(objects, "ServiceMonitor"), one(objects, "Service", "-admin")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert {"targetLabel": "job", "replacement": "pullthrough"} in endpoint["relabelings"]
    assert (CHART / "files" / "alerts.yml").read_text() == ALERTS.read_text()
    assert one(objects, "PrometheusRule")["spec"] == yaml.safe_load(ALERTS.read_text())


WRONG = {
    "an unknown value": ("replicas=3", "replicas"),
    "an unknown value below": ("service.kind=NodePort", "kind"),
    "an unknown key of proxy.yaml": ("config.chache.max_size=1GiB", "chache"),
    "a word where a number stands": ("replicaCount=many", "replicaCount"),
    "a type of Service that there is not": ("service.type=Ingress", "type"),
    "a duration without a unit": ("config.shutdown_timeout=60", "shutdown_timeout"),
    "an address without a port": ("config.admin.address=0.0.0.0", "address"),
    "a password in a ConfigMap": ("config.shared.metadata=redis://me:secret@valkey:6379", "metadata"),
    "keys in a ConfigMap": ("config.shared.blobs=s3://images?access_key_id=me", "blobs"),
    "no token for the API": ("secrets.adminToken.name=", "adminToken"),
    "a volume for many nodes": ("persistence.accessModes={ReadWriteMany}", "accessModes"),
    "too little time to end": ("terminationGracePeriodSeconds=60", "terminationGracePeriodSeconds"),
}


@pytest.mark.parametrize("mistake", list(WRONG))
def test_wrong_values_are_refused(mistake: str) -> None:
    """By the schema, or by the chart where two values have to fit; what is said names the value."""
    setting, word = WRONG[mistake]
    assert word in refused("--set", setting)


def test_the_schema_knows_every_part_of_proxy_yaml() -> None:
    """The first level of `config` is that of the settings."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(schema["properties"]["config"]["properties"]) == set(Settings.model_fields)
    assert schema["additionalProperties"] is False


# Kubernetes' own, or the program's: their parts are explained there.
WHOLE = {"config", "resources", "podSecurityContext", "securityContext", "persistence.retention"}
WHOLE |= {f"secrets.{name}" for name in ("adminToken", "region", "metadata", "blobs")}
WHOLE |= {f"probes.{name}" for name in ("startup", "liveness", "readiness")}


def paths(values: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The names of all values, as `persistence.size`."""
    for key, value in values.items():
        name = f"{above}{key}"
        if isinstance(value, dict) and value and name not in WHOLE:
            yield from paths(value, f"{name}.")
        else:
            yield name


def test_every_value_is_explained() -> None:
    """The chart's README has each value in its table, and none that there is not."""
    values = set(paths(yaml.safe_load((CHART / "values.yaml").read_text())))
    table = [line for line in (CHART / "README.md").read_text().splitlines() if line.startswith("| `")]
    assert {name for line in table for name in re.findall(r"`([A-Za-z.]+)`", line.split("|")[1])} == values


def test_the_chart_is_for_this_version() -> None:
    """appVersion is the program's."""
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == __version__


# The shipped files at work.


class Balancer:
    """HAProxy with the shipped configuration, of which only the addresses are others: `replicas` are clients' and admin
    ports. It runs until it is stopped."""

    def __init__(self, directory: Path, replicas: Sequence[tuple[int, int]]) -> None:
        self.port, self.admin_port = free_port(), free_port()
        text = (DEPLOY / "compose" / "haproxy.cfg").read_text()
        text = text.replace("bind :5000", f"bind 127.0.0.1:{self.port}")
        text = text.replace("bind :8404", f"bind 127.0.0.1:{self.admin_port}")
        text, _, rest = text.partition("    server replica-1")
        servers = [
            f"    server replica-{number} 127.0.0.1:{port} port {admin}"
            for number, (port, admin) in enumerate(replicas, start=1)
        ]
        file = directory / "haproxy.cfg"
        file.write_text(text + "\n".join(servers) + "\n\nfrontend admin" + rest.partition("frontend admin")[2])
        self._daemon = Daemon(["haproxy", "-db", "-f", file], directory / "haproxy.log")
        self._daemon.wait_until(lambda: self.serving() == len(replicas))

    def serving(self) -> int:
        """How many replicas it sends requests to."""
        with contextlib.suppress(OSError):
            lines = ask(self.admin_port, "/metrics").body.decode().splitlines()
            found = [line for line in lines if line.startswith('haproxy_backend_active_servers{proxy="replicas"}')]
            return int(float(found[0].rpartition(" ")[2])) if found else 0
        return 0

    def stop(self) -> None:
        self._daemon.stop()


class Monitor:
    """Prometheus with the shipped configuration and alerts, of which only the addresses are others."""

    def __init__(self, directory: Path, replicas: Sequence[int], balancer: int) -> None:
        self.port = free_port()
        text = (DEPLOY / "compose" / "prometheus.yml").read_text()
        for number, port in enumerate(replicas, start=1):
            text = text.replace(f"replica-{number}:5001", f"127.0.0.1:{port}")
        text = text.replace("haproxy:8404", f"127.0.0.1:{balancer}").replace("/etc/prometheus/alerts.yml", str(ALERTS))
        file = directory / "prometheus.yml"
        file.write_text(text.replace("scrape_interval: 5s", "scrape_interval: 1s"))
        words = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={directory / 'prometheus'}"]
        words.append(f"--web.listen-address=127.0.0.1:{self.port}")
        self._daemon = Daemon(words, directory / "prometheus.log")
        self._daemon.wait_until(lambda: answers(self.port, "/-/ready"))

    def query(self, expression: str) -> list[Document]:
        """What it gives for an expression now."""
        answer = ask(self.port, f"/api/v1/query?query={quote(expression)}")
        assert answer.status == 200, (expression, answer.body)
        found: list[Document] = json.loads(answer.body)["data"]["result"]
        return found

    def stop(self) -> None:
        self._daemon.stop()


class Shown(ValkeyServer):
    """The server with the shipped configuration and access list: everybody may ping, one user may do what it needs."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        users = (DEPLOY / "compose" / "users.acl").read_text()
        # Redis 7.0, Debian's, does not know it, and is not asked for it.
        (directory / "users.acl").write_text(users.replace("+client|setinfo ", ""))
        self._user, self._password = re.findall(r"^user (\w+) on >(\S+) ", users, re.MULTILINE)[0]
        # Somebody who sees what was refused.
        with (directory / "users.acl").open("a") as file:
            file.write("user auditor on >auditor +acl|log\n")
        text = (DEPLOY / "compose" / "valkey.conf").read_text()
        text = text.replace("/etc/valkey/users.acl", str(directory / "users.acl"))
        text = text.replace("dir /data", f"dir {directory}").replace("bind * -::*", "bind 127.0.0.1")
        self._file = directory / "valkey.conf"
        self._file.write_text(text)
        super().__init__(directory)

    def url(self, prefix: str = "pullthrough") -> str:
        """As the shipped one has it."""
        return f"redis://{self._user}:{self._password}@{self.host}:{self.port}/0?prefix={prefix}"

    def start(self) -> None:
        daemon = Daemon(["redis-server", self._file, "--port", str(self.port)], self._directory / "log")
        daemon.wait_until(self.answers)
        self._daemon = daemon

    def refused(self) -> str:
        """What was tried and not allowed."""
        words = ("redis-cli", "-p", str(self.port), "--user", "auditor", "--pass", "auditor", "--no-auth-warning")
        return run(*words, "acl", "log")


Running = tuple[CountingOrigin, Shown, Replicas, Balancer]


@contextlib.contextmanager
def cluster(scratch: Path, count: int = 3) -> Iterator[Running]:
    """The cluster of docker-compose.cluster.yml as processes on loopback, in front of an upstream that counts."""
    shipped = yaml.safe_load((DEPLOY / "compose" / "proxy.yaml").read_text())
    kept = {key: shipped[key] for key in ("manifests", "clusters")}
    directory = scratch / "cluster"
    directory.mkdir()
    with contextlib.ExitStack() as stack:
        origin = CountingOrigin()
        stack.callback(origin.stop)
        valkey = Shown(directory / "valkey")
        stack.callback(valkey.stop)
        objects = S3Server(directory)
        stack.callback(objects.stop)
        keys = {"access_key_id": ACCESS, "secret_access_key": SECRET}
        shared = {"metadata": valkey.url(), "blobs": objects.url("cache", **keys)}
        believed = {"trusted_proxies": ["127.0.0.1/32"]}
        replicas = stack.enter_context(Replicas(directory / "replicas", origin, shared, count, **kept, **believed))
        balancer = Balancer(directory, [(one.port, one.admin_port) for one in replicas])
        stack.callback(balancer.stop)
        yield origin, valkey, replicas, balancer


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """It, once for all tests: whatever one of them stops it starts again."""
    with cluster(tmp_path_factory.mktemp("running")) as started:
        yield started


class Polling:
    """Somebody who asks for the same thing again and again, on a new connection each; `wrong` is what was not good."""

    def __init__(self, port: int, path: str) -> None:
        self.wrong: list[object] = []
        self.asked = 0
        self._port, self._path = port, path
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> "Polling":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._ends.is_set():
            try:
                answer = ask(self._port, self._path)
            except (OSError, http.client.HTTPException) as error:
                self.wrong.append(error)
            else:
                if answer.status != 200:
                    self.wrong.append(answer)
            self.asked += 1


def test_requests_go_on_when_a_replica_dies(running: Running) -> None:
    """One of three is killed, another one ends in peace: of requests through the load balancer not one fails, before
    it has noticed and after. Clients in the middle of a body go on with the byte that is missing."""
    origin, _, replicas, balancer = running
    image = origin.push("team/dies", 4 * MIB, 100_000)
    load = Load([balancer.port], moves=True)
    with Polling(balancer.port, f"/v2/{REGISTRY}/{image.repository}/manifests/{image.tag}") as polling:
        asyncio.run(load.pull(image, 10))
        replicas[0].kill()
        asyncio.run(load.pull(image, 10))
        wait_for("it is out", lambda: balancer.serving() == 2)
        replicas[1].stop()
        asyncio.run(load.pull(image, 10))
        wait_for("the other one is out", lambda: balancer.serving() == 1)
        replicas[0].start()
        replicas[1].start()
        wait_for("both are back", lambda: balancer.serving() == 3)
        asyncio.run(load.pull(image, 10))
    assert load.errors == []
    assert load.pulled == 40
    assert polling.wrong == []
    assert polling.asked > 100


def test_replicas_see_the_client_and_not_what_it_says(
    running: Running,
) -> None:
    """The node that was given a tag is the one that came to the load balancer; an X-Forwarded-For of its own is not
    handed on."""
    origin, _, replicas, balancer = running
    image = origin.push("team/seen", 1000)
    path = f"/v2/{REGISTRY}/{image.repository}/manifests/{image.tag}"
    answer = ask(balancer.port, path, headers={"X-Forwarded-For": "10.9.9.9"}, source="127.0.0.7")
    assert answer.status == 200

    def nodes() -> set[str]:
        (tag,) = replicas[0].api("GET", f"tags?reference={quote(image.reference)}&nodes=true")["tags"]
        return {node["address"] for entry in tag["history"] for node in entry.get("nodes", [])}

    wait_for("it is written down", lambda: bool(nodes()), within=10)
    assert nodes() == {"127.0.0.7"}


def test_a_blob_has_a_replica_of_its_own_and_a_crowd_has_all(
    running: Running,
) -> None:
    """Whoever asks for a digest, in whichever repository, comes to the same replica while that is not busy, so blobs
    lie at one of them; a crowd that wants the same is spread."""
    origin, _, replicas, balancer = running

    def held(digest: str) -> int:
        return sum(has(one.cache, digest) for one in replicas)

    quiet = [origin.push(f"team/quiet{number}", *(80_000,) * 3) for number in range(4)]
    for image in quiet:
        for _ in range(3):
            for digest in image.blobs:
                assert ask(balancer.port, f"/v2/{REGISTRY}/{image.repository}/blobs/{digest}").status == 200
    time.sleep(0.5)
    # Three requests each: taken in turn, all would be at all of them. Two that overlap may part.
    assert sum(held(digest) for image in quiet for digest in image.blobs) <= 1.25 * 16
    assert len({one.port for one in replicas for image in quiet for d in image.blobs if has(one.cache, d)}) == 3

    crowd = origin.push("team/crowd", 4 * MIB)
    (_, layer) = crowd.blobs
    # Slow enough for all of them to be there together.
    origin.throttle(4e6)
    with ThreadPoolExecutor(30) as pool:
        path = f"/v2/{REGISTRY}/{crowd.repository}/blobs/{layer}"
        given = [pool.submit(ask, balancer.port, path) for _ in range(30)]
    origin.throttle(0)
    assert {answer.result().digest for answer in given} == {layer}
    # A body may end a moment before its blob is published.
    wait_for("all have it", lambda: held(layer) == 3, within=10)
    assert origin.sent(layer) <= 1.01 * 4 * MIB


def has(cache: Path, digest: str) -> bool:
    name = digest.partition(":")[2]
    return (cache / "blobs" / "sha256" / name[:2] / name).exists()


def test_valkey_allows_what_replicas_need_and_nothing_else(
    running: Running,
) -> None:
    """With the shipped access list replicas pull, hold, release, refresh, purge, warm, list and start again, and
    nothing of it is refused. Who has no password may ping, and no more."""
    origin, valkey, replicas, balancer = running
    image = origin.push("team/allowed", 200_000)
    load = Load([balancer.port])
    asyncio.run(load.pull(image, 4))
    assert load.errors == []
    for words in (
        ("hold", image.reference),
        ("release", image.reference),
        ("refresh", image.reference),
        ("tags",),
        ("purge", image.reference),
        ("warm", "--platform", "all", image.reference),
    ):
        replicas[1].operate(*words)
    replicas[2].stop()
    replicas[2].start()
    assert replicas.metric("pullthrough_shared_errors_total") == 0
    assert all(one.metrics()['pullthrough_shared_up{store="metadata"}'] == 1 for one in replicas)
    assert valkey.refused().strip() == ""
    with pytest.raises(Refused):
        valkey.command("GET", "{pullthrough}:1:epoch")


def test_prometheus_sees_what_happens(running: Running, tmp_path: Path) -> None:
    """A real Prometheus scrapes three replicas and HAProxy, can answer all that the dashboard asks, and notices the
    replica that is gone."""
    origin, _, replicas, balancer = running
    monitor = Monitor(tmp_path, [one.admin_port for one in replicas], balancer.admin_port)
    try:
        wait_for("all are scraped", lambda: len(monitor.query('up{job="pullthrough"} == 1')) == 3)
        image = origin.push("team/scraped", 300_000)
        load = Load([balancer.port])
        asyncio.run(load.pull(image, 20))
        assert load.errors == []
        asked = 'sum(increase(pullthrough_requests_total{job="pullthrough"}[1m]))'
        wait_for("it is counted", lambda: sum(float(one["value"][1]) for one in monitor.query(asked)) >= 60)
        for expression in expressions():
            monitor.query(expression)
        (ratio,) = monitor.query(expressions()[0])
        assert 0.5 < float(ratio["value"][1]) <= 1
        assert len(monitor.query('haproxy_server_status{state="UP"} == 1')) == 3
        replicas[1].stop()
        pending = 'ALERTS{alertname="PullthroughReplicaDown",alertstate="pending"}'
        wait_for("it is noticed", lambda: len(monitor.query(pending)) == 1, within=40)
    finally:
        monitor.stop()
        if not replicas[1].runs:
            replicas[1].start()
