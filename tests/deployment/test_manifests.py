"""Manifests that a cluster would take, that keep to the rules, and that agree with the server's own configuration."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import rules
import yaml
from command_line import parsed

from commands.subcommands.shared_options import DEFAULT_MODEL

ROOT = Path(__file__).resolve().parents[2]
KUBEFLOW = ROOT / "kubeflow"
RENDERED = ("volume", "bucket", "release", "with_addons")
# The oldest release that knows every field that is used (a CronJob's time zone, evicting unhealthy pods), and the
# newest whose schemas are at hand.
KUBERNETES = ("1.27", kubernetes_validate.latest_version())
# Kinds of add-ons, whose schemas Kubernetes does not have.
ADD_ONS = {"PodMonitor"}

Manifest = dict[str, Any]


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
    (deployment,) = copy.deepcopy(rules.of_kind(volume, "Deployment"))
    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(deployment, KUBERNETES[-1], strict=True)


def test_the_rules_are_kept(rendered: list[Manifest]) -> None:
    assert rules.violations(rendered) == []


def test_what_is_there(volume: list[Manifest], bucket: list[Manifest], with_addons: list[Manifest]) -> None:
    serving = {
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
        {rules.title(each) for each in manifests if each["kind"] != "ConfigMap"}
        for manifests in (volume, bucket, with_addons)
    ]
    assert found == [
        serving | batch | volumes,
        serving | batch,
        serving | batch | volumes | {"PodMonitor/recommender"},
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
    files = rules.config_files(request.getfixturevalue(overlay))
    models = rules.model_config(files["models.config"]).model_config_list.config
    assert [(each.name, each.model_platform) for each in models] == [(DEFAULT_MODEL, "tensorflow")]


def test_overlays_differ_in_where_the_model_is_and_in_nothing_else(
    volume: list[Manifest], bucket: list[Manifest]
) -> None:
    of_volume, of_bucket = (rules.config_files(each) for each in (volume, bucket))
    assert of_volume.keys() == of_bucket.keys()
    assert [name for name in of_volume if of_volume[name] != of_bucket[name]] == ["models.config"]
    configs = [rules.model_config(each["models.config"]) for each in (of_volume, of_bucket)]
    places = []
    for config in configs:
        places.append(config.model_config_list.config[0].base_path)
        config.model_config_list.config[0].ClearField("base_path")
    assert places == [f"/models/{DEFAULT_MODEL}", f"gs://example-bucket/serving/{DEFAULT_MODEL}"]
    assert configs[0] == configs[1]
    (_, on_volume), (_, in_bucket) = rules.serving(volume), rules.serving(bucket)
    assert rules.flags(on_volume) == rules.flags(in_bucket)


def test_pods_reach_the_bucket_and_nothing_inside_the_cluster(volume: list[Manifest], bucket: list[Manifest]) -> None:
    def egress(manifests: list[Manifest]) -> list[list[Manifest]]:
        return [each["spec"].get("egress", []) for each in rules.of_kind(manifests, "NetworkPolicy")]

    assert egress(volume) == [[], []]
    for policy in egress(bucket):
        ports = {port["port"] for rule in policy for port in rule["ports"]}
        assert ports == {53, 80, 443, 987, 988, 8080}
        anywhere = [
            to["ipBlock"] for rule in policy for to in rule["to"] if "ipBlock" in to and "except" in to["ipBlock"]
        ]
        assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"} <= set(anywhere[0]["except"])
    identities = [
        each["metadata"]["annotations"]["iam.gke.io/gcp-service-account"]
        for each in rules.of_kind(bucket, "ServiceAccount")
    ]
    assert len(set(identities)) == 2, "serving reads, the batch job writes"


def test_serving_cannot_write_where_the_models_are(volume: list[Manifest], release: list[Manifest]) -> None:
    _, container = rules.serving(volume)
    mounts = {each["name"]: each for each in container["volumeMounts"]}
    assert mounts["models"] == {"name": "models", "mountPath": "/models", "readOnly": True}
    assert [name for name, each in mounts.items() if not each.get("readOnly")] == ["tmp"]
    # Moving a label writes beside the versions, so that its job is the only one that may.
    (job,) = rules.of_kind(release, "Job")
    mount = job["spec"]["template"]["spec"]["containers"][0]["volumeMounts"][0]
    assert mount == {"name": "models", "mountPath": "/models"}


def test_the_labels_component_follows_the_file_that_promote_writes(with_addons: list[Manifest]) -> None:
    _, container = rules.serving(with_addons)
    followed = rules.flags(container)["model_config_file"]
    models = rules.model_config(rules.config_files(with_addons)["models.config"]).model_config_list.config
    assert followed == str(Path(models[0].base_path).parent / "models.config")


def test_requests_are_merged_only_where_that_is_asked_for(volume: list[Manifest], with_addons: list[Manifest]) -> None:
    (_, plain), (_, batching) = rules.serving(volume), rules.serving(with_addons)
    assert "enable_batching" not in rules.flags(plain), "TensorFlow Serving would refuse recommend_filtered"
    added = dict(rules.flags(batching).items() - rules.flags(plain).items())
    assert added["enable_batching"] == "true"
    assert added["batching_parameters_file"] == f"{rules.CONFIG_DIR}/batching.config"


def test_a_pod_monitor_replaces_the_annotations(volume: list[Manifest], with_addons: list[Manifest]) -> None:
    def annotations(manifests: list[Manifest]) -> list[str]:
        template, _ = rules.serving(manifests)
        return [key for key in template["metadata"].get("annotations") or {} if key.startswith("prometheus.io/")]

    assert annotations(volume) == ["prometheus.io/path", "prometheus.io/port", "prometheus.io/scrape"]
    assert annotations(with_addons) == []


@pytest.mark.parametrize("overlay", ["volume", "bucket", "release"])
def test_jobs_give_tandem_options_that_it_has(request: pytest.FixtureRequest, overlay: str) -> None:
    found = []
    for workload, template in rules.workloads(request.getfixturevalue(overlay)):
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
        (job,) = rules.of_kind(manifests, "CronJob")
        (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        source = container["envFrom"][0]["configMapRef"]["name"]
        (places,) = [each["data"] for each in manifests if rules.title(each) == f"ConfigMap/{source}"]
        mounts = [each["mountPath"] for each in container["volumeMounts"]]
        for place in places.values():
            assert any(place.startswith(f"{mount}/") for mount in mounts), f"{place} is on no volume: {mounts}"
        (served,) = rules.model_config(rules.config_files(manifests)["models.config"]).model_config_list.config
        assert places["MODEL_DIR"].replace("/bucket/", "gs://example-bucket/") == served.base_path
        # `tandem batch` refuses the folder of another run.
        assert "--out=$(OUT)/$(JOB)" in container["args"]


def test_images_are_this_release_and_tensorflow(volume: list[Manifest]) -> None:
    lock = (ROOT / "requirements.lock").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    images = [each["image"] for _, template in rules.workloads(volume) for each in rules.containers(template)]
    serving, tandem = sorted(images, key=lambda image: "serving" not in image)
    assert f"\ntensorflow=={serving.partition(':')[2]}" in lock, (
        "TensorFlow Serving of the TensorFlow that writes models"
    )
    assert f'\nversion = "{tandem.rpartition(":")[2]}"' in project


Break = Callable[[dict[str, Manifest]], object]


def pod(manifests: dict[str, Manifest]) -> Manifest:
    found: Manifest = manifests["Deployment/recommender"]["spec"]["template"]["spec"]
    return found


def container(manifests: dict[str, Manifest]) -> Manifest:
    found: Manifest = pod(manifests)["containers"][0]
    return found


def job(manifests: dict[str, Manifest]) -> Manifest:
    found: Manifest = manifests["CronJob/recommender-batch"]["spec"]["jobTemplate"]["spec"]
    return found


def argument(manifests: dict[str, Manifest], before: str, after: str) -> None:
    arguments = container(manifests)["args"]
    arguments[arguments.index(before)] = after


def configured(manifests: dict[str, Manifest], file: str, before: str, after: str) -> None:
    (data,) = [each["data"] for name, each in manifests.items() if name.startswith("ConfigMap/recommender-serving-")]
    assert before in data[file]
    data[file] = data[file].replace(before, after)


BROKEN: dict[str, tuple[Break, str]] = {
    "root user": (lambda m: pod(m)["securityContext"].update(runAsUser=0), "may run as root"),
    "no word on root": (
        lambda m: (pod(m)["securityContext"].pop("runAsNonRoot"), container(m)["securityContext"].pop("runAsNonRoot")),
        "may run as root",
    ),
    "job as root": (
        lambda m: job(m)["template"]["spec"].pop("securityContext"),
        "CronJob/recommender-batch: container",
    ),
    "writable root": (lambda m: container(m)["securityContext"].pop("readOnlyRootFilesystem"), "can write to its root"),
    "privileged": (lambda m: container(m)["securityContext"].update(privileged=True), "can gain privileges"),
    "capability": (lambda m: container(m)["securityContext"]["capabilities"].update(add=["NET_RAW"]), "keeps capab"),
    "no seccomp": (lambda m: pod(m)["securityContext"].pop("seccompProfile"), "no seccompProfile"),
    "host network": (lambda m: pod(m).update(hostNetwork=True), "hostNetwork is set"),
    "host port": (lambda m: container(m)["ports"][0].update(hostPort=8500), "takes a port of the node"),
    "host path": (lambda m: pod(m)["volumes"].append({"name": "host", "hostPath": {"path": "/"}}), "is a hostPath"),
    "token": (lambda m: pod(m).pop("automountServiceAccountToken"), "gets a token of the cluster"),
    "token of the account": (
        lambda m: m["ServiceAccount/recommender"].pop("automountServiceAccountToken"),
        "hands out a token",
    ),
    "default account": (lambda m: pod(m).pop("serviceAccountName"), "service account None is not among"),
    "no limits": (lambda m: container(m)["resources"].pop("limits"), "no request or no limit for memory"),
    "no requests": (lambda m: container(m)["resources"].pop("requests"), "no request or no limit for cpu"),
    "request above limit": (lambda m: container(m)["resources"]["requests"].update(memory="4Gi"), "than its limit"),
    "more threads than CPUs": (
        lambda m: argument(m, "--tensorflow_intra_op_parallelism=2", "--tensorflow_intra_op_parallelism=64"),
        "does not fit the CPU limit",
    ),
    "boundless emptyDir": (lambda m: pod(m)["volumes"][-1].update(emptyDir={}), "can fill the node's disk"),
    "latest": (lambda m: container(m).update(image="tensorflow/serving:latest"), "not pinned"),
    "no tag": (lambda m: container(m).update(image="tensorflow/serving"), "not pinned"),
    "volume without a mount": (lambda m: container(m)["volumeMounts"].pop(), "is mounted nowhere"),
    "claim that is not there": (lambda m: m.pop("PersistentVolumeClaim/recommender-models"), "is not among the manif"),
    "variable without a value": (
        lambda m: job(m)["template"]["spec"]["containers"][0].pop("env"),
        "$(JOB) is defined nowhere",
    ),
    "wrong port": (lambda m: container(m)["ports"][0].update(containerPort=9000), "TensorFlow Serving opens"),
    "wrong flag": (lambda m: argument(m, "--port=8500", "--port=9000"), "TensorFlow Serving opens"),
    "service to another port": (
        lambda m: m["Service/recommender"]["spec"]["ports"][0].update(targetPort="http"),
        "Service/recommender: port grpc",
    ),
    "service of nothing": (
        lambda m: m["Service/recommender"]["spec"]["selector"].update({"app.kubernetes.io/name": "x"}),
        "Service/recommender: selects nothing",
    ),
    "service of the jobs": (
        lambda m: m["Service/recommender"]["spec"]["selector"].pop("app.kubernetes.io/component"),
        "Service/recommender: selects Deployment/recommender, CronJob",
    ),
    "pods of another selector": (
        lambda m: m["Deployment/recommender"]["spec"]["template"]["metadata"]["labels"].pop("app.kubernetes.io/name"),
        "does not match its own pods",
    ),
    "probe of another model": (
        lambda m: container(m)["readinessProbe"]["httpGet"].update(path="/v1/models/other"),
        "readinessProbe asks",
    ),
    "probe of another port": (
        lambda m: container(m)["livenessProbe"]["httpGet"].update(port="grpc"),
        "livenessProbe asks",
    ),
    "no start-up probe": (lambda m: container(m).pop("startupProbe"), "startupProbe asks"),
    "restarts before it is taken out": (
        lambda m: container(m)["livenessProbe"].update(failureThreshold=1, periodSeconds=5),
        "in the wrong order",
    ),
    "another model name": (
        lambda m: configured(m, "models.config", 'name: "recommender"', 'name: "other"'),
        "startupProbe asks",
    ),
    "model where nothing is mounted": (
        lambda m: configured(m, "models.config", "/models/recommender", "/elsewhere/recommender"),
        "where nothing is mounted",
    ),
    "bucket without a way out": (
        lambda m: configured(m, "models.config", "/models/recommender", "gs://example-bucket/recommender"),
        "no egress is allowed",
    ),
    "configuration file that is not there": (
        lambda m: argument(
            m,
            "--monitoring_config_file=/etc/tensorflow-serving/monitoring.config",
            "--monitoring_config_file=/etc/tensorflow-serving/prometheus.config",
        ),
        "is not in the ConfigMap",
    ),
    "configuration that is not mounted": (lambda m: container(m)["volumeMounts"].pop(1), "is in no mounted folder"),
    "batching without parameters": (lambda m: container(m)["args"].append("--enable_batching=true"), "both or none"),
    "metrics elsewhere": (
        lambda m: configured(m, "monitoring.config", "/monitoring/prometheus/metrics", "/metrics"),
        "Prometheus asks for",
    ),
    "no metrics": (lambda m: configured(m, "monitoring.config", "true", "false"), "Prometheus asks for"),
    "metrics on another port": (
        lambda m: m["Deployment/recommender"]["spec"]["template"]["metadata"]["annotations"].update(
            {"prometheus.io/port": "8500"}
        ),
        "Prometheus asks port 8500",
    ),
    "no time to drain": (lambda m: pod(m).update(terminationGracePeriodSeconds=10), "no time to drain"),
    "no pause before the end": (lambda m: container(m).pop("lifecycle"), "no time to drain"),
    "roll-out with a gap": (
        lambda m: m["Deployment/recommender"]["spec"]["strategy"]["rollingUpdate"].update(maxUnavailable=1),
        "before its successor is ready",
    ),
    "no spread": (lambda m: pod(m).pop("topologySpreadConstraints"), "wanted nodes and zones"),
    "replicas and autoscaler": (
        lambda m: m["Deployment/recommender"]["spec"].update(replicas=1),
        "which the Horizontal",
    ),
    "one replica": (
        lambda m: m["HorizontalPodAutoscaler/recommender"]["spec"].update(minReplicas=1),
        "one pod is no redundancy",
    ),
    "autoscaler of another": (
        lambda m: m["HorizontalPodAutoscaler/recommender"]["spec"]["scaleTargetRef"].update(name="x"),
        "is not what the HorizontalPodAutoscaler scales",
    ),
    "budget that blocks every drain": (
        lambda m: m["PodDisruptionBudget/recommender"]["spec"].update(maxUnavailable=0),
        "must allow some disruption",
    ),
    "no budget": (lambda m: m.pop("PodDisruptionBudget/recommender"), "has no PodDisruptionBudget"),
    "no network policy": (lambda m: m.pop("NetworkPolicy/recommender"), "cover nothing"),
    "open to everybody": (
        lambda m: m["NetworkPolicy/recommender"]["spec"]["ingress"][0].pop("from"),
        "open to everybody",
    ),
    "job that stays": (lambda m: job(m).pop("ttlSecondsAfterFinished"), "may stay for ever"),
    "job beside a proxy": (
        lambda m: job(m)["template"]["metadata"]["labels"].pop("sidecar.istio.io/inject"),
        "an Istio proxy",
    ),
    "two runs at once": (
        lambda m: m["CronJob/recommender-batch"]["spec"].update(concurrencyPolicy="Allow"),
        "two runs may write",
    ),
    "unlabelled": (lambda m: m["Service/recommender"]["metadata"].pop("labels"), "lacks the labels"),
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda name: name.replace(" ", "-"))
def test_a_broken_manifest_is_found(volume: list[Manifest], broken: str) -> None:
    manifests = {rules.title(each): each for each in copy.deepcopy(volume)}
    change, message = BROKEN[broken]
    change(manifests)
    found = rules.violations(list(manifests.values()))
    assert any(message in each for each in found), found
