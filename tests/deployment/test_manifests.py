"""The manifests fit the API, are secure, and agree with TensorFlow Serving's own configuration.

A general linter was looked for: those with a wheel are heavy, and none compares ports, probes and volumes with the
server's flags and files. The tests state what our manifests have, instead of rules for any manifest.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from command_line import parsed
from kubernetes.utils.quantity import parse_quantity
from rendered import (
    CONFIG_DIR,
    Manifest,
    config_files,
    containers,
    deployment,
    flags,
    models,
    of_kind,
    serving,
    title,
    workloads,
)

from commands.subcommands.shared_options import DEFAULT_MODEL

ROOT = Path(__file__).resolve().parents[2]
KUBEFLOW = ROOT / "kubeflow"
RENDERED = ("volume", "bucket", "release", "with_addons")
# The oldest release that knows every field that is used (a CronJob's time zone, evicting unhealthy pods), and the
# newest whose schemas are at hand.
KUBERNETES = ("1.27", kubernetes_validate.latest_version())
# Kinds of add-ons, whose schemas Kubernetes does not have.
ADD_ONS = {"PodMonitor"}

SERVING = {"app.kubernetes.io/name": "recommender", "app.kubernetes.io/component": "serving"}
POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": 10001,
    "runAsGroup": 10001,
    "fsGroup": 10001,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "privileged": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
}


def spread(spec: Manifest) -> list[Manifest]:
    """The topology spread constraints of a Deployment's pods."""
    found: list[Manifest] = spec["template"]["spec"]["topologySpreadConstraints"]
    return found


@pytest.fixture(params=RENDERED)
def rendered(request: pytest.FixtureRequest) -> list[Manifest]:
    found: list[Manifest] = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("version", KUBERNETES)
def test_every_manifest_fits_the_api(rendered: list[Manifest], version: str) -> None:
    for manifest in rendered:
        if manifest["kind"] not in ADD_ONS:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_a_field_that_the_api_does_not_have_is_noticed(volume: list[Manifest]) -> None:
    (deployment,) = copy.deepcopy(of_kind(volume, "Deployment"))
    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(deployment, KUBERNETES[-1], strict=True)


def test_pods_meet_the_restricted_pod_security_standard(rendered: list[Manifest]) -> None:
    for workload, template in workloads(rendered):
        pod, where = template["spec"], title(workload)
        assert pod["securityContext"] == POD_SECURITY, where
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}, where
        kinds = {kind for each in pod["volumes"] for kind in each if kind != "name"}
        assert kinds <= {"configMap", "csi", "emptyDir", "persistentVolumeClaim"}, where
        for each in containers(template):
            assert each["securityContext"] == CONTAINER_SECURITY, where
            assert not any("hostPort" in port for port in each.get("ports", ())), where


def test_pods_have_no_rights_in_the_cluster(rendered: list[Manifest]) -> None:
    accounts = {each["metadata"]["name"]: each for each in of_kind(rendered, "ServiceAccount")}
    for account in accounts.values():
        assert account["automountServiceAccountToken"] is False
    for _, template in workloads(rendered):
        assert template["spec"]["serviceAccountName"] in accounts
        assert template["spec"]["automountServiceAccountToken"] is False


def test_resources_are_limited(rendered: list[Manifest]) -> None:
    for workload, template in workloads(rendered):
        for each in containers(template):
            requests, limits = (each["resources"][part] for part in ("requests", "limits"))
            for resource in ("cpu", "memory"):
                assert parse_quantity(requests[resource]) <= parse_quantity(limits[resource]), title(workload)
        for each in template["spec"]["volumes"]:
            assert "sizeLimit" in each.get("emptyDir", {"sizeLimit": ""}), f"{title(workload)} can fill the node's disk"
    _, container = serving(rendered)
    cpus = parse_quantity(container["resources"]["limits"]["cpu"])
    for flag in ("tensorflow_intra_op_parallelism", "tensorflow_inter_op_parallelism"):
        assert 1 <= int(flags(container)[flag]) <= cpus, "the CPU limit would throttle the threads"


def test_volumes_and_variables_are_defined(rendered: list[Manifest]) -> None:
    names = {title(each) for each in rendered}
    for _, template in workloads(rendered):
        volumes = {each["name"]: each for each in template["spec"]["volumes"]}
        assert volumes.keys() == {mount["name"] for each in containers(template) for mount in each["volumeMounts"]}
        for each in volumes.values():
            if "persistentVolumeClaim" in each:
                assert f"PersistentVolumeClaim/{each['persistentVolumeClaim']['claimName']}" in names
            if "configMap" in each:
                assert f"ConfigMap/{each['configMap']['name']}" in names
        for each in containers(template):
            known = {entry["name"] for entry in each.get("env", ())}
            for source in each.get("envFrom", ()):
                name = source["configMapRef"]["name"]
                (data,) = [one["data"] for one in rendered if title(one) == f"ConfigMap/{name}"]
                known |= data.keys()
            assert set(re.findall(r"\$\((\w+)\)", " ".join(each["args"]))) <= known


def test_selectors_select_the_serving_pods(rendered: list[Manifest]) -> None:
    for workload, template in workloads(rendered):
        assert (template["metadata"]["labels"].items() >= SERVING.items()) == (workload["kind"] == "Deployment")
    spec = deployment(rendered)
    selectors = [spec["selector"], *(each["labelSelector"] for each in spread(spec))]
    selectors += [each["spec"]["selector"] for each in of_kind(rendered, "PodDisruptionBudget", "PodMonitor")]
    assert all(each == {"matchLabels": SERVING} for each in selectors), selectors
    assert all(each["spec"]["selector"] == SERVING for each in of_kind(rendered, "Service"))
    for each in rendered:
        if each["kind"] != "ConfigMap":
            assert SERVING.keys() <= each["metadata"]["labels"].keys(), title(each)


def test_ports_are_those_that_tensorflow_serving_opens(rendered: list[Manifest]) -> None:
    _, container = serving(rendered)
    ports = {"grpc": int(flags(container)["port"]), "http": int(flags(container)["rest_api_port"])}
    assert {each["name"]: each["containerPort"] for each in container["ports"]} == ports
    for service in of_kind(rendered, "Service"):
        found = {each["name"]: (each["port"], each["targetPort"]) for each in service["spec"]["ports"]}
        assert found.items() <= {name: (port, name) for name, port in ports.items()}.items(), title(service)


def test_probes_request_the_status_of_the_model(rendered: list[Manifest]) -> None:
    _, container = serving(rendered)
    (model,) = models(rendered)
    seconds = []
    for probe in (container[name] for name in ("readinessProbe", "livenessProbe", "startupProbe")):
        assert probe["httpGet"] == {"path": f"/v1/models/{model.name}", "port": "http"}
        seconds.append(probe["periodSeconds"] * probe["failureThreshold"])
    assert seconds == sorted(set(seconds)), "a pod leaves the Service before it is restarted"


def test_a_rollout_drops_no_request(rendered: list[Manifest]) -> None:
    spec = deployment(rendered)
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    template, container = serving(rendered)
    program, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "/bin/sleep"
    assert 5 <= int(seconds) < template["spec"]["terminationGracePeriodSeconds"], "the time to drain connections"


def test_one_pod_less_is_not_an_outage(rendered: list[Manifest]) -> None:
    spec = deployment(rendered)
    assert "replicas" not in spec, "the HorizontalPodAutoscaler owns the number"
    (scaler,) = of_kind(rendered, "HorizontalPodAutoscaler")
    (budget,) = of_kind(rendered, "PodDisruptionBudget")
    assert scaler["spec"]["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "recommender"}
    assert 1 <= budget["spec"]["maxUnavailable"] < scaler["spec"]["minReplicas"] < scaler["spec"]["maxReplicas"]
    assert {each["topologyKey"] for each in spread(spec)} == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}


def test_network_policies_cover_every_pod(rendered: list[Manifest]) -> None:
    of_serving, of_jobs = (each["spec"] for each in of_kind(rendered, "NetworkPolicy"))
    assert of_serving["podSelector"] == {"matchLabels": SERVING}
    (jobs,) = of_jobs["podSelector"]["matchExpressions"]
    components = {
        template["metadata"]["labels"]["app.kubernetes.io/component"]
        for workload, template in workloads(rendered)
        if workload["kind"] != "Deployment"
    }
    assert (jobs["key"], jobs["operator"]) == ("app.kubernetes.io/component", "In") and components <= set(
        jobs["values"]
    )
    for policy in (of_serving, of_jobs):
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        assert all(rule["from"] and rule["ports"] for rule in policy["ingress"]), "a rule is open to every pod"
        assert all(rule["to"] and rule["ports"] for rule in policy["egress"])
    assert {port["port"] for rule in of_serving["ingress"] for port in rule["ports"]} == {8500, 8501}
    assert of_jobs["ingress"] == []


def test_configuration_files_are_mounted(rendered: list[Manifest]) -> None:
    _, container = serving(rendered)
    given, files = flags(container), config_files(rendered)
    assert set(files) == {"models.config", "batching.config", "monitoring.config"}
    mounts = [each["mountPath"] for each in container["volumeMounts"]]
    for path in (Path(value) for value in given.values() if value.startswith("/")):
        assert str(path.parent) in mounts
        assert str(path.parent) != CONFIG_DIR or path.name in files
    assert (given.get("enable_batching") == "true") == ("batching_parameters_file" in given)
    (model,) = models(rendered)
    egress = of_kind(rendered, "NetworkPolicy")[0]["spec"]["egress"]
    assert any(model.base_path.startswith(f"{each}/") for each in mounts) or egress, "the pod cannot read the model"


def test_prometheus_scrapes_the_page_that_the_server_opens(rendered: list[Manifest]) -> None:
    template, container = serving(rendered)
    monitoring = config_files(rendered)["monitoring.config"]
    (path,) = re.findall(r'path:\s*"([^"]+)"', monitoring)
    assert re.search(r"enable:\s*true", monitoring)
    annotations = template["metadata"].get("annotations") or {}
    monitors = [end for each in of_kind(rendered, "PodMonitor") for end in each["spec"]["podMetricsEndpoints"]]
    if monitors:
        assert [(each["port"], each["path"]) for each in monitors] == [("http", path)]
        assert not any(key.startswith("prometheus.io/") for key in annotations), "each pod would be scraped twice"
    else:
        port = flags(container)["rest_api_port"]
        expected = {"prometheus.io/scrape": "true", "prometheus.io/port": port, "prometheus.io/path": path}
        assert annotations.items() >= expected.items()


def test_jobs_end(rendered: list[Manifest]) -> None:
    for each in of_kind(rendered, "Job", "CronJob"):
        job = each["spec"]["jobTemplate"]["spec"] if each["kind"] == "CronJob" else each["spec"]
        assert {"backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"} <= job.keys(), title(each)
        assert job["template"]["spec"]["restartPolicy"] == "Never"
        assert job["template"]["metadata"]["labels"]["sidecar.istio.io/inject"] == "false", (
            "the proxy would keep running"
        )
        assert each["kind"] == "Job" or each["spec"]["concurrencyPolicy"] == "Forbid", "two runs would write at a time"


def test_what_is_there(request: pytest.FixtureRequest) -> None:
    server = {
        "Deployment/recommender",
        "Service/recommender",
        "Service/recommender-pods",
        "HorizontalPodAutoscaler/recommender",
        "PodDisruptionBudget/recommender",
        "NetworkPolicy/recommender",
        "ServiceAccount/recommender",
    }
    batch = {"CronJob/recommender-batch", "NetworkPolicy/recommender-jobs", "ServiceAccount/recommender-batch"}
    volumes = {"PersistentVolumeClaim/recommender-models", "PersistentVolumeClaim/recommender-batch"}
    found = [
        {title(each) for each in manifests if each["kind"] != "ConfigMap"}
        for manifests in map(request.getfixturevalue, RENDERED)
    ]
    assert found == [
        server | batch | volumes,
        server | batch,
        server | batch | volumes | {"Job/recommender-promote"},
        server | batch | volumes | {"PodMonitor/recommender"},
    ]


def test_every_file_belongs_to_a_kustomization() -> None:
    named = set()
    for path in KUBEFLOW.rglob("kustomization.yaml"):
        content = yaml.safe_load(path.read_text())
        patches = [each["path"] for each in content.get("patches", ()) if "path" in each]
        generated = [file for each in content.get("configMapGenerator", ()) for file in each.get("files", ())]
        named |= {(path.parent / each).resolve() for each in [*content.get("resources", ()), *patches, *generated]}
        named.add(path)
    assert [each for each in KUBEFLOW.rglob("*") if each.suffix in (".yaml", ".config") and each not in named] == []


@pytest.mark.parametrize("overlay", ["volume", "bucket"])
def test_the_model_has_the_name_that_clients_ask_for(request: pytest.FixtureRequest, overlay: str) -> None:
    found = models(request.getfixturevalue(overlay))
    assert [(each.name, each.model_platform) for each in found] == [(DEFAULT_MODEL, "tensorflow")]


def test_overlays_differ_in_where_the_model_is_and_in_nothing_else(
    volume: list[Manifest], bucket: list[Manifest]
) -> None:
    of_volume, of_bucket = (config_files(each) for each in (volume, bucket))
    assert of_volume.keys() == of_bucket.keys()
    assert [name for name in of_volume if of_volume[name] != of_bucket[name]] == ["models.config"]
    (on_disk,), (in_cloud,) = models(volume), models(bucket)
    assert on_disk.base_path == f"/models/{DEFAULT_MODEL}"
    assert in_cloud.base_path == f"gs://example-bucket/serving/{DEFAULT_MODEL}"
    in_cloud.base_path = on_disk.base_path
    assert on_disk == in_cloud
    (_, on_volume), (_, in_bucket) = serving(volume), serving(bucket)
    assert flags(on_volume) == flags(in_bucket)


def test_pods_reach_the_bucket_and_nothing_inside_the_cluster(volume: list[Manifest], bucket: list[Manifest]) -> None:
    def egress(manifests: list[Manifest]) -> list[list[Manifest]]:
        return [each["spec"].get("egress", []) for each in of_kind(manifests, "NetworkPolicy")]

    assert egress(volume) == [[], []]
    for policy in egress(bucket):
        ports = {port["port"] for rule in policy for port in rule["ports"]}
        assert ports == {53, 80, 443, 987, 988, 8080}
        anywhere = [
            to["ipBlock"] for rule in policy for to in rule["to"] if "ipBlock" in to and "except" in to["ipBlock"]
        ]
        assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"} <= set(anywhere[0]["except"])
    identities = [
        each["metadata"]["annotations"]["iam.gke.io/gcp-service-account"] for each in of_kind(bucket, "ServiceAccount")
    ]
    assert len(set(identities)) == 2, "serving reads, the batch job writes"


def test_serving_cannot_write_where_the_models_are(volume: list[Manifest], release: list[Manifest]) -> None:
    _, container = serving(volume)
    mounts = {each["name"]: each for each in container["volumeMounts"]}
    assert mounts["models"] == {"name": "models", "mountPath": "/models", "readOnly": True}
    assert [name for name, each in mounts.items() if not each.get("readOnly")] == ["tmp"]
    # Moving a label writes beside the versions, so that its job is the only one that may.
    (job,) = of_kind(release, "Job")
    mount = job["spec"]["template"]["spec"]["containers"][0]["volumeMounts"][0]
    assert mount == {"name": "models", "mountPath": "/models"}


def test_the_addon_labels_follows_the_file_that_promote_writes(with_addons: list[Manifest]) -> None:
    _, container = serving(with_addons)
    followed = flags(container)["model_config_file"]
    (model,) = models(with_addons)
    assert followed == str(Path(model.base_path).parent / "models.config")


def test_requests_are_merged_only_where_that_is_asked_for(volume: list[Manifest], with_addons: list[Manifest]) -> None:
    (_, plain), (_, batching) = serving(volume), serving(with_addons)
    assert "enable_batching" not in flags(plain), "TensorFlow Serving would refuse recommend_filtered"
    added = dict(flags(batching).items() - flags(plain).items())
    assert added["enable_batching"] == "true"
    assert added["batching_parameters_file"] == f"{CONFIG_DIR}/batching.config"


@pytest.mark.parametrize("overlay", ["volume", "bucket", "release"])
def test_jobs_give_tandem_options_that_it_has(request: pytest.FixtureRequest, overlay: str) -> None:
    found = []
    for workload, template in workloads(request.getfixturevalue(overlay)):
        if workload["kind"] == "Deployment":
            continue
        (container,) = template["spec"]["containers"]
        assert container["command"] == ["tandem"]
        assert parsed(container["args"])
        found.append(container["args"][0])
    assert found == {"release": ["batch", "promote"]}.get(overlay, ["batch"])


def test_the_batch_job_writes_a_folder_a_run_from_the_model_that_is_served(
    volume: list[Manifest], bucket: list[Manifest]
) -> None:
    for manifests in (volume, bucket):
        (job,) = of_kind(manifests, "CronJob")
        (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        source = container["envFrom"][0]["configMapRef"]["name"]
        (places,) = [each["data"] for each in manifests if title(each) == f"ConfigMap/{source}"]
        mounts = [each["mountPath"] for each in container["volumeMounts"]]
        for place in places.values():
            assert any(place.startswith(f"{mount}/") for mount in mounts), f"{place} is on no volume: {mounts}"
        (served,) = models(manifests)
        assert places["MODEL_DIR"].replace("/bucket/", "gs://example-bucket/") == served.base_path
        # `tandem batch` refuses the folder of another run.
        assert "--out=$(OUT)/$(JOB)" in container["args"]


def test_images_are_this_release_and_tensorflow(rendered: list[Manifest]) -> None:
    lock = (ROOT / "requirements.lock").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    images = {each["image"] for _, template in workloads(rendered) for each in containers(template)}
    (official,) = (each for each in images if each.startswith("tensorflow/serving:"))
    (ours,) = images - {official}
    assert f"\ntensorflow=={official.partition(':')[2]}" in lock, "expected the TensorFlow that writes the SavedModels"
    assert f'\nversion = "{ours.rpartition(":")[2]}"' in project
