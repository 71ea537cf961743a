"""What is deployed: files that can be read, agree with each other, and name what there is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.unit.test_metrics import SIGHT, beat, metrics_of, samples
from warren import Settings
from warren.bus.topology import Names
from warren.cli import runtime

ROOT: Final = Path(__file__).parents[2]
DEPLOY: Final = ROOT / "deploy"
RULES: Final = DEPLOY / "prometheus" / "rules.yml"
DASHBOARD: Final = DEPLOY / "grafana" / "dashboards" / "warren.json"
KUBERNETES: Final = DEPLOY / "kubernetes"
GUIDE: Final = ROOT / "docs" / "operations.md"
SECURITY: Final = ROOT / "docs" / "security.md"
ONCE: Final = {"migrate", "key"}  # services that end
ROLES: Final = {"worker", "gateway", "operator", "producer", "scaler"}  # users of the broker on Kubernetes
WARREN: Final = {"migrate", "key", "gateway", "worker", "operator"}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def alerts() -> list[dict[str, Any]]:
    return [rule for group in read(RULES)["groups"] for rule in group["rules"]]


# --- metrics, alerts, dashboard ---------------------------------------------------------------------------


def exposed() -> set[str]:
    """The names of all samples of a fleet in which there is everything."""
    return {name for name, _ in samples(metrics_of(beat("a", 4)), SIGHT)}


def named_in(path: Path) -> set[str]:
    return set(re.findall(r"\bwarren_[a-z_]+\b", path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", [RULES, DASHBOARD], ids=["rules", "dashboard"])
def test_every_metric_that_is_named_is_there(path: Path) -> None:
    named = named_in(path)
    assert len(named) > 8
    assert named <= exposed()


@pytest.mark.parametrize("path", [DASHBOARD, GUIDE], ids=["dashboard", "guide"])
def test_every_metric_is_shown_and_told_of(path: Path) -> None:
    of_a_histogram = r"_(bucket|count|sum)$"
    families = {re.sub(of_a_histogram, "", name) for name in exposed()}
    assert families == {re.sub(of_a_histogram, "", name) for name in named_in(path)}


def test_every_alert_has_its_section_and_says_where() -> None:
    sections = re.findall(r"^### (\w+)$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sections == [alert["alert"] for alert in alerts()]
    for alert in alerts():
        assert alert["annotations"]["runbook"] == f"docs/operations.md#{alert['alert'].lower()}"
        assert alert["labels"]["severity"] in ("critical", "warning")


def test_every_alert_is_tested_both_ways() -> None:
    cases = [
        case
        for test in read(DEPLOY / "prometheus" / "rules_test.yml")["tests"]
        for case in test["alert_rule_test"]
    ]
    for alert in alerts():
        fires = {bool(case["exp_alerts"]) for case in cases if case["alertname"] == alert["alert"]}
        assert fires == {True, False}, alert["alert"]


@pytest.mark.parametrize(
    "command",
    [("check", "rules", "rules.yml"), ("test", "rules", "rules_test.yml")],
    ids=["rules", "their tests"],
)
def test_prometheus_agrees(command: tuple[str, ...]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("there is no promtool (Debian: apt-get install prometheus)")
    done = subprocess.run(
        [promtool, *command], cwd=RULES.parent, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_likes_the_names_of_our_metrics() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("there is no promtool (Debian: apt-get install prometheus)")
    exposition = metrics_of(beat("a", 4)).exposition(SIGHT, 0)
    done = subprocess.run(
        [promtool, "check", "metrics"], input=exposition, capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_the_dashboard_and_its_data_source_belong_together() -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    provisioned = read(DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml")
    uid = provisioned["datasources"][0]["uid"]
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert {panel["datasource"]["uid"] for panel in panels} == {uid}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert provisioned["datasources"][0]["url"] == "http://prometheus:9090"


# --- compose ----------------------------------------------------------------------------------------------


@pytest.fixture
def services() -> dict[str, Any]:
    services: dict[str, Any] = read(ROOT / "compose.yaml")["services"]
    return services


def test_ports_are_on_this_machine_alone(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_services_have_limits_and_are_looked_after(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert {"cpus", "memory"} <= set(service["deploy"]["resources"]["limits"]), name
        if "profiles" in service:
            continue  # started by hand for one command
        assert ("healthcheck" in service) == (name not in ONCE), name
        assert service["restart"] == ("on-failure" if name in ONCE else "unless-stopped"), name
    assert services["worker"]["deploy"]["replicas"] == 2


def test_our_own_have_no_more_rights_than_they_need(services: dict[str, Any]) -> None:
    for name in WARREN:
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
    dockerfile = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^USER (.+)$", dockerfile, re.MULTILINE) == ["10001"]


def test_nobody_keeps_rights_that_it_does_not_need(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_images_and_tools_have_exact_versions(services: dict[str, Any]) -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    images = [service["image"] for service in services.values() if service["image"] != "warren:local"]
    images += re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)
    images += [one["spec"]["image"] for one in of_kind("RabbitmqCluster")]
    assert all(re.search(r":v?\d+\.\d+", image) for image in images), images
    assert {"rabbitmq:4.3-management", "python:3.13-slim"}.isdisjoint(images)
    setup = (DEPLOY / "setup").read_text(encoding="utf-8")
    [version] = set(re.findall(r"\buv==(\d+\.\d+\.\d+)", setup + dockerfile))
    assert version


def test_a_password_that_others_could_use_has_no_default(services: dict[str, Any]) -> None:
    """The database's is for its own network, which has no way out and no port."""
    networks = read(ROOT / "compose.yaml")["networks"]
    assert networks["store"] == {"internal": True}
    assert services["postgres"]["networks"] == ["store"]
    assert "ports" not in services["postgres"]
    assert services["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"] == password_of("grafana")
    assert [user["password"] for user in broker_users()] == [
        password_of("rabbitmq" if user["name"] == "warren" else user["name"]) for user in broker_users()
    ]


def password_of(name: str) -> str:
    return f"${{WARREN_{name.upper()}_PASSWORD:?run `deploy/setup passwords`}}"


def broker_users() -> list[dict[str, Any]]:
    users: list[dict[str, Any]] = json.loads(
        read(ROOT / "compose.yaml")["configs"]["rabbitmq-users"]["content"]
    )["users"]
    return users


def test_passwords_are_made_once_for_all_that_want_one(tmp_path: Path) -> None:
    (tmp_path / "deploy").mkdir()
    setup = shutil.copy(DEPLOY / "setup", tmp_path / "deploy")
    (tmp_path / ".env").write_text("WARREN_GRAFANA_PASSWORD=chosen\n")
    for _ in range(2):
        subprocess.run([setup, "passwords"], check=True, timeout=60)
    made = dict(line.split("=") for line in (tmp_path / ".env").read_text().splitlines())
    wanted = re.findall(r"\$\{(\w+):\?", (ROOT / "compose.yaml").read_text(encoding="utf-8"))
    assert set(made) == set(wanted)
    assert made.pop("WARREN_GRAFANA_PASSWORD") == "chosen"
    assert len(set(made.values())) == len(made)
    assert all(re.fullmatch("[0-9a-f]{48}", password) for password in made.values())


def test_each_service_is_the_user_of_its_role(services: dict[str, Any]) -> None:
    """Only people are administrators."""
    tags = {user["name"]: user["tags"] for user in broker_users()}
    assert tags.pop("warren") == ["administrator"]
    assert set(tags) == set(permissions_of_the_guide())
    assert not any(tags.values())
    urls = {name: one.get("environment", {}).get("WARREN_AMQP_URL") for name, one in services.items()}
    assert {name: url for name, url in urls.items() if url} == {
        role: f"amqp://{role}:{password_of(role)}@rabbitmq:5672" for role in ("gateway", "operator", "worker")
    }


def permissions_of_the_guide() -> dict[str, dict[str, str]]:
    line = re.compile(r"^\$ rabbitmqctl set_permissions (\w+) '(.*)' '(.*)' '(.*)'$", re.MULTILINE)
    found = line.findall(SECURITY.read_text(encoding="utf-8"))
    return {
        role: {"configure": configure, "write": write, "read": read} for role, configure, write, read in found
    }


def test_users_have_the_permissions_of_the_guide_and_no_more() -> None:
    definitions = json.loads((DEPLOY / "rabbitmq" / "permissions.json").read_text(encoding="utf-8"))
    composed = {one.pop("user"): one for one in definitions["permissions"]}
    assert (
        {one.pop("vhost") for one in composed.values()}
        == {"/"}
        == {one["name"] for one in definitions["vhosts"]}
    )
    assert set(composed.pop("warren").values()) == {".*"}
    guide = permissions_of_the_guide()
    assert composed == guide
    applied = {one["metadata"]["name"].removeprefix("warren-"): one["spec"] for one in of_kind("Permission")}
    for role in ROLES - {"scaler"}:
        assert applied[role]["permissions"] == guide[role], role
    assert set(applied["scaler"]["permissions"].values()) == {"^$"}


def test_files_that_are_mounted_are_there(services: dict[str, Any]) -> None:
    mounted = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", ())]
    files = [path for path in mounted if path.startswith("./")]
    assert files
    assert all((ROOT / path).exists() for path in files)
    assert {path for path in mounted if not path.startswith("./")} == set(
        read(ROOT / "compose.yaml")["volumes"]
    )


def test_a_worker_has_time_to_drain(services: dict[str, Any]) -> None:
    seconds = int(services["worker"]["stop_grace_period"].removesuffix("s"))
    assert seconds > Settings().drain_timeout


ACCOUNTS = ("RABBITMQ", "WORKER", "GATEWAY", "OPERATOR", "PRODUCER", "LISTENER", "GRAFANA")


def test_docker_agrees() -> None:
    docker = shutil.which("docker")
    if (
        docker is None
        or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode
    ):
        pytest.skip("there is no docker compose")
    done = subprocess.run(
        [docker, "compose", "--file", str(ROOT / "compose.yaml"), "config", "--quiet"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={f"WARREN_{name}_PASSWORD": "a" for name in ACCOUNTS} | {"PATH": str(Path(docker).parent)},
    )
    assert done.returncode == 0, done.stderr


# --- Kubernetes -------------------------------------------------------------------------------------------


def objects() -> list[dict[str, Any]]:
    """Everything that `kubectl apply -k` would apply."""
    listed = read(KUBERNETES / "kustomization.yaml")["resources"]
    assert {path.name for path in KUBERNETES.iterdir()} == {*listed, "kustomization.yaml"}
    return [
        one for name in listed for one in yaml.safe_load_all((KUBERNETES / name).read_text(encoding="utf-8"))
    ]


def of_kind(*kinds: str) -> list[dict[str, Any]]:
    return [one for one in objects() if one["kind"] in kinds]


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for one in of_kind("Deployment", "Job"):
        yield one["metadata"]["name"], one["spec"]["template"]["spec"]


def commands() -> Iterator[list[str]]:
    """What our own containers run, under compose and on Kubernetes."""
    services = read(ROOT / "compose.yaml")["services"]
    yield from (services[name]["command"] for name in WARREN - {"key"})
    yield from (container["command"] for _, pod in pods() for container in pod["containers"])


def test_names_are_unique_and_labels_meet_selectors() -> None:
    names = [(one["kind"], one["metadata"]["name"]) for one in objects()]
    assert len(names) == len(set(names))
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in of_kind("Deployment")]
    for one in of_kind("Deployment", "Service", "PodDisruptionBudget"):
        selector = one["spec"]["selector"]
        wanted = selector.get("matchLabels", selector)
        assert sum(wanted.items() <= its.items() for its in labels) == 1, one["metadata"]["name"]


def test_pods_have_no_more_rights_than_they_need() -> None:
    for name, pod in pods():
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] == 10001, name
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]


def test_secrets_are_named_and_never_written_down() -> None:
    assert not of_kind("Secret")
    known = {"warren-store", *(f"{one['metadata']['name']}-user-credentials" for one in of_kind("User"))}
    for _, pod in pods():
        for container in pod["containers"]:
            for variable in container["env"]:
                if "value" in variable:
                    assert (
                        variable["value"] == "amqp://$(BROKER_USER):$(BROKER_PASSWORD)@warren-rabbitmq:5672/"
                    )
                else:
                    assert variable["valueFrom"]["secretKeyRef"]["name"] in known
    [authentication] = of_kind("TriggerAuthentication")
    assert {one["name"] for one in authentication["spec"]["secretTargetRef"]} <= known


def test_what_is_scaled_is_there_and_its_queue_is_ours() -> None:
    [scaled] = of_kind("ScaledObject")
    target = scaled["spec"]["scaleTargetRef"]["name"]
    [deployment] = [one for one in of_kind("Deployment") if one["metadata"]["name"] == target]
    assert "replicas" not in deployment["spec"]  # or each apply would undo what was scaled
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    agents = runtime.load(container["command"][-1]).agents
    for trigger in scaled["spec"]["triggers"]:
        assert trigger["metadata"]["queueName"] in {Names("warren").queue(name) for name in agents}
        known = {one["metadata"]["name"] for one in of_kind("TriggerAuthentication")}
        assert trigger["authenticationRef"]["name"] in known


def test_scaling_counts_what_runs_and_spares_the_busy() -> None:
    [scaled] = of_kind("ScaledObject")
    for trigger in scaled["spec"]["triggers"]:
        assert trigger["metadata"]["protocol"] == "http"  # by AMQP only ready messages are counted
        assert int(trigger["metadata"]["value"]) <= Settings().prefetch / 2
    down = scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    assert down["stabilizationWindowSeconds"] >= 300
    assert down["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 300}]


def test_each_role_has_a_user_of_the_broker_and_no_administrator() -> None:
    users = {one["metadata"]["name"]: one["spec"] for one in of_kind("User")}
    rights = {one["metadata"]["name"]: one["spec"]["permissions"] for one in of_kind("Permission")}
    assert set(users) == set(rights) == {f"warren-{role}" for role in ROLES}
    assert not [name for name, spec in users.items() if "administrator" in spec["tags"]]
    for name, pod in pods():
        role = name.removeprefix("warren-")
        named = {
            one["valueFrom"]["secretKeyRef"]["name"]
            for container in pod["containers"]
            for one in container["env"]
            if one["name"].startswith("BROKER_")
        }
        assert named <= {f"warren-{role}-user-credentials"}
    queue = Names("warren").queue("greet")
    assert re.search(rights["warren-worker"]["read"], queue)
    assert not any(re.search(rights[f"warren-{role}"]["read"], queue) for role in ROLES - {"worker"})


def test_what_is_not_allowed_on_the_network_is_forbidden() -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in of_kind("NetworkPolicy")}
    nothing = policies["warren-nothing"]
    assert nothing["policyTypes"] == ["Ingress", "Egress"]
    assert not nothing.get("ingress")
    assert not nothing.get("egress")
    for one in of_kind("Deployment", "Job"):
        labels = one["spec"]["template"]["metadata"]["labels"]
        assert nothing["podSelector"]["matchLabels"].items() <= labels.items()
    assert policies["warren-rabbitmq"]["policyTypes"] == ["Ingress"]


def test_probes_and_services_meet_ports() -> None:
    [gateway] = [pod for name, pod in pods() if name == "warren-gateway"]
    [container] = gateway["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert container["command"][-1] == str(ports["http"])
    assert {container[probe]["httpGet"]["port"] for probe in ("livenessProbe", "readinessProbe")} == {"http"}
    [service] = of_kind("Service")
    assert service["spec"]["ports"][0]["targetPort"] in ports
    [worker] = [pod for name, pod in pods() if name == "warren-worker"]
    assert worker["terminationGracePeriodSeconds"] > Settings().drain_timeout


def test_our_containers_run_our_image_and_name_real_settings() -> None:
    images = {one["name"] for one in read(KUBERNETES / "kustomization.yaml")["images"]}
    assert {container["image"] for _, pod in pods() for container in pod["containers"]} == images
    assert {command[0] for command in commands()} == {"warren"}
    variables = {
        variable["name"]
        for _, pod in pods()
        for container in pod["containers"]
        for variable in container["env"]
        if not variable["name"].startswith("BROKER_")
    }
    services = read(ROOT / "compose.yaml")["services"]
    variables |= {
        key for name in WARREN for key in services[name]["environment"] if key.startswith("WARREN_")
    }
    assert variables <= {f"WARREN_{name.upper()}" for name in Settings.model_fields}
