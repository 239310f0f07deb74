"""
Check what is in deploy/ and compose.yaml, as far as that can be done without a cluster.

The schemas are those of every release of Kubernetes that kubernetes-validate ships, and
unknown fields fail; a broken copy of each object must fail, too.  The nodes' own
options are read as the pods would read them.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from kubernetes_validate.utils import all_versions, major_minor

from twisted_kvs.options import Configuration, Options

PROJECT = Path(__file__).parent.parent
MANIFESTS = PROJECT / "deploy" / "kubernetes"
KINDS = {"NetworkPolicy", "PodDisruptionBudget", "Service", "StatefulSet"}
PROBES = {
    "startupProbe": "/health/live",
    "livenessProbe": "/health/live",
    "readinessProbe": "/health/ready",
}
PORT = 8080
DNS = 53
Object = dict[str, Any]


def read_objects() -> Iterator[tuple[str, Object]]:
    """Read all manifests."""
    for path in sorted(MANIFESTS.glob("*.yaml")):
        for found in yaml.safe_load_all(path.read_text("utf-8")):
            yield path.name, found


def is_valid(found: Object, version: str) -> bool:
    """Tell whether an object has what its schema wants, and nothing else."""
    try:
        kubernetes_validate.validate(found, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        print(f"{found['kind']}, Kubernetes {version}: {error.message}")
        return False
    return True


def break_copies(found: Object) -> Iterator[Object]:
    """Misspell a field at the top, and one further down."""
    yield {**found, "speck": {}}
    if "spec" in found:
        broken = copy.deepcopy(found)
        broken["spec"]["selektor"] = broken["spec"].pop("selector", {})
        yield broken


def read_configurations(stateful_set: Object) -> Iterator[Configuration]:
    """Configure each pod's node as its variables say."""
    spec = stateful_set["spec"]
    [container] = spec["template"]["spec"]["containers"]
    for number in range(spec["replicas"]):
        name = f"{stateful_set['metadata']['name']}-{number}"
        environment = {
            entry["name"]: entry.get("value", name).replace("$(POD_NAME)", name)
            for entry in container["env"]
        }
        with tempfile.NamedTemporaryFile("w") as secret:
            secret.write("secret\n")
            secret.flush()
            environment["KVS_SECRET_FILE"] = secret.name
            options = Options(environment)
            options.parseOptions([])
            yield options.configuration


def check_stateful_set(objects: dict[str, Object], services: list[Object]) -> None:
    """Compare what the objects say of each other."""
    pods = objects["StatefulSet"]["spec"]
    template = pods["template"]
    labels = template["metadata"]["labels"]
    [headless] = [one for one in services if one["spec"].get("clusterIP") == "None"]
    assert headless["spec"]["publishNotReadyAddresses"] is True
    assert headless["metadata"]["name"] == pods["serviceName"]
    for one in services:
        assert one["spec"]["selector"].items() <= labels.items()
    for selector in (
        pods["selector"],
        objects["PodDisruptionBudget"]["spec"]["selector"],
        objects["NetworkPolicy"]["spec"]["podSelector"],
    ):
        assert selector["matchLabels"].items() <= labels.items()
    host = f".{headless['metadata']['name']}:8080"
    for number, node in enumerate(read_configurations(objects["StatefulSet"])):
        assert node.first_view[number] == node.me, node
        assert node.me.endswith(host) and len(node.first_view) == pods["replicas"]
        assert node.drain_s + 4 < template["spec"]["terminationGracePeriodSeconds"]
        assert not node.unknown, node.unknown
        assert node.replica_count == 3


def check_pod(pods: Object) -> None:
    """Compare what a pod says of itself, and with what the image is made for."""
    pod = pods["template"]["spec"]
    [container] = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": PORT}, ports
    for probe, path in PROBES.items():
        asked = container[probe]["httpGet"]
        assert (asked["path"], asked["port"]) == (path, "http"), (probe, asked)
    security = pod["securityContext"]
    # The volume belongs to the user that may write it.
    assert security["runAsUser"] == security["runAsGroup"] == security["fsGroup"]
    dockerfile = (PROJECT / "Dockerfile").read_text("utf-8")
    assert f"USER {security['runAsUser']}:{security['runAsGroup']}\n" in dockerfile
    claims = {claim["metadata"]["name"] for claim in pods["volumeClaimTemplates"]}
    secrets = {volume["name"]: volume["secret"] for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    data, secret = mounts.pop("/data"), mounts.pop("/run/kvs")
    assert data in claims and not mounts, mounts
    assert "KVS_DATA_DIR=/data\n" in dockerfile
    [path] = (e["value"] for e in container["env"] if e["name"] == "KVS_SECRET_FILE")
    made = f"secret generic {secrets[secret]['secretName']} --from-file="
    told = f"{made}{path.removeprefix('/run/kvs/')}=/dev/stdin"
    for where in ("README.md", "deploy/kubernetes/statefulset.yaml"):
        assert told in (PROJECT / where).read_text("utf-8"), f"{where}: {told}"


def check_network(objects: dict[str, Object], services: list[Object]) -> None:
    """Compare the ways to the pods with their port."""
    assert objects["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1
    names = [service["metadata"]["name"] for service in services]
    assert len(set(names)) == len(names), names
    for service in services:
        [port] = service["spec"]["ports"]
        assert (port["port"], port["targetPort"]) == (PORT, "http"), port
    spec = objects["NetworkPolicy"]["spec"]
    [into] = spec["ingress"]
    to_nodes, to_dns = spec["egress"]
    assert [port["port"] for port in into["ports"]] == ["http"]
    assert [port["port"] for port in to_nodes["ports"]] == [PORT]
    assert {(p["protocol"], p["port"]) for p in to_dns["ports"]} == {
        ("UDP", DNS),
        ("TCP", DNS),
    }


def main() -> None:
    """Check everything; end with a line that says what is wrong."""
    found = list(read_objects())
    # Each release is listed twice, strict and not.
    versions = list(dict.fromkeys(map(major_minor, all_versions())))
    for path, one in found:
        for version in versions:
            if not is_valid(one, version):
                raise SystemExit(f"{path} is not valid")
        if any(is_valid(broken, versions[-1]) for broken in break_copies(one)):
            raise SystemExit(f"a broken {one['kind']} counts as valid")
    objects = {one["kind"]: one for _, one in found}
    assert set(objects) == KINDS, set(objects)
    services = [one for _, one in found if one["kind"] == "Service"]
    check_stateful_set(objects, services)
    check_pod(objects["StatefulSet"]["spec"])
    check_network(objects, services)
    print(f"{len(found)} objects, valid for {versions[0]} to {versions[-1]}")
    schema = ("--builtin-schema", "vendor.compose-spec")
    check = (sys.executable, "-m", "check_jsonschema", *schema)
    subprocess.run([*check, str(PROJECT / "compose.yaml")], check=True)


if __name__ == "__main__":
    main()
