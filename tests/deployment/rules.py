"""What the manifests must keep to, beyond the API's schemas: the rules of kube-linter and of Kubernetes' restricted pod
security standard, and that ports, probes, selectors, volumes and TensorFlow Serving's own configuration agree.

Each rule takes all manifests of one `kubectl apply` and yields what is wrong, as `KIND/NAME: …`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf import text_format
from kubernetes.utils.quantity import parse_quantity
from tensorflow_serving.config import model_server_config_pb2

Manifest = dict[str, Any]
Rule = Callable[[list[Manifest]], Iterator[str]]

CONFIG = "recommender-serving"
CONFIG_DIR = "/etc/tensorflow-serving"
RESTRICTED_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected"}


def violations(manifests: list[Manifest]) -> list[str]:
    """Everything that is wrong with the manifests."""
    return [each for rule in RULES for each in rule(manifests)]


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [each for each in manifests if each["kind"] in kinds]


def title(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def workloads(manifests: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """Everything that makes pods, with its pod template."""
    for each in of_kind(manifests, "Deployment", "Job", "CronJob"):
        spec = each["spec"]
        yield each, (spec["jobTemplate"]["spec"] if each["kind"] == "CronJob" else spec)["template"]


def containers(template: Manifest) -> list[Manifest]:
    return [*template["spec"]["containers"], *template["spec"].get("initContainers", ())]


def serving(manifests: list[Manifest]) -> tuple[Manifest, Manifest]:
    """TensorFlow Serving's pod template and its container."""
    (deployment,) = of_kind(manifests, "Deployment")
    template = deployment["spec"]["template"]
    (container,) = template["spec"]["containers"]
    return template, container


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a label selector matches, as Kubernetes decides it."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    decide = {
        "In": lambda value, values: value in values,
        "NotIn": lambda value, values: value not in values,
        "Exists": lambda value, values: value is not None,
        "DoesNotExist": lambda value, values: value is None,
    }
    return all(
        decide[each["operator"]](labels.get(each["key"]), each.get("values", ()))
        for each in selector.get("matchExpressions", ())
    )


def flags(container: Manifest) -> dict[str, str]:
    """TensorFlow Serving's flags, with environment variables filled in."""
    values = {each["name"]: each.get("value", "") for each in container.get("env", ())}
    filled = [re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], argument) for argument in container["args"]]
    return dict(argument.removeprefix("--").split("=", 1) for argument in filled)


def model_config(text: str) -> model_server_config_pb2.ModelServerConfig:
    return text_format.Parse(text, model_server_config_pb2.ModelServerConfig())


def config_files(manifests: list[Manifest]) -> dict[str, str]:
    """TensorFlow Serving's configuration files, by name, from the generated ConfigMap."""
    return next(
        (
            each["data"]
            for each in of_kind(manifests, "ConfigMap")
            if re.fullmatch(rf"{CONFIG}-[a-z0-9]{{10}}", each["metadata"]["name"])
        ),
        {},
    )


def without_privileges(manifests: list[Manifest]) -> Iterator[str]:
    for workload, template in workloads(manifests):
        pod = template["spec"]
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.get(key):
                yield f"{title(workload)}: {key} is set"
        if pod.get("securityContext", {}).get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{title(workload)}: no seccompProfile RuntimeDefault"
        for each in containers(template):
            context = {**pod.get("securityContext", {}), **each.get("securityContext", {})}
            where = f"{title(workload)}: container {each['name']}"
            if context.get("runAsNonRoot") is not True or not context.get("runAsUser") or not context.get("runAsGroup"):
                yield f"{where} may run as root"
            if context.get("readOnlyRootFilesystem") is not True:
                yield f"{where} can write to its root filesystem"
            if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
                yield f"{where} can gain privileges"
            if context.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{where} keeps capabilities"
            if any("hostPort" in port for port in each.get("ports", ())):
                yield f"{where} takes a port of the node"


def without_cluster_rights(manifests: list[Manifest]) -> Iterator[str]:
    accounts = {each["metadata"]["name"]: each for each in of_kind(manifests, "ServiceAccount")}
    for workload, template in workloads(manifests):
        account = template["spec"].get("serviceAccountName")
        if account not in accounts:
            yield f"{title(workload)}: service account {account} is not among the manifests"
        if template["spec"].get("automountServiceAccountToken") is not False:
            yield f"{title(workload)}: gets a token of the cluster"
    for each in accounts.values():
        if each.get("automountServiceAccountToken") is not False:
            yield f"{title(each)}: hands out a token of the cluster"
    for each in of_kind(manifests, "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"):
        yield f"{title(each)}: nothing here needs rights in the cluster"


def resources_are_set(manifests: list[Manifest]) -> Iterator[str]:
    for workload, template in workloads(manifests):
        for each in containers(template):
            for resource in ("cpu", "memory"):
                given = each.get("resources", {})
                request, limit = (given.get(part, {}).get(resource) for part in ("requests", "limits"))
                where = f"{title(workload)}: container {each['name']}"
                if request is None or limit is None:
                    yield f"{where} has no request or no limit for {resource}"
                elif parse_quantity(request) > parse_quantity(limit):
                    yield f"{where} asks for more {resource} than its limit"
        for each in template["spec"].get("volumes", ()):
            if "emptyDir" in each and "sizeLimit" not in each["emptyDir"]:
                yield f"{title(workload)}: emptyDir {each['name']} can fill the node's disk"


def images_are_pinned(manifests: list[Manifest]) -> Iterator[str]:
    for workload, template in workloads(manifests):
        for each in containers(template):
            if not re.search(r"(@sha256:[0-9a-f]{64}|:v?\d+\.\d+\.\d+[\w.-]*)$", each["image"]):
                yield f"{title(workload)}: image {each['image']} is not pinned to a release"


def references_exist(manifests: list[Manifest]) -> Iterator[str]:
    names = {(each["kind"], each["metadata"]["name"]) for each in manifests}
    for workload, template in workloads(manifests):
        volumes = {each["name"]: each for each in template["spec"].get("volumes", ())}
        mounted = {mount["name"] for each in containers(template) for mount in each.get("volumeMounts", ())}
        for name in sorted(volumes.keys() ^ mounted):
            yield f"{title(workload)}: volume {name} is mounted nowhere or not defined"
        for name, each in volumes.items():
            if kind := next((kind for kind in each if kind not in RESTRICTED_VOLUMES | {"name"}), None):
                yield f"{title(workload)}: volume {name} is a {kind}"
            claim = each.get("persistentVolumeClaim", {}).get("claimName")
            config = each.get("configMap", {}).get("name")
            for reference in (("PersistentVolumeClaim", claim), ("ConfigMap", config)):
                if reference[1] is not None and reference not in names:
                    yield f"{title(workload)}: {'/'.join(reference)} is not among the manifests"
        for each in containers(template):
            sources = [source["configMapRef"]["name"] for source in each.get("envFrom", ()) if "configMapRef" in source]
            known = {entry["name"] for entry in each.get("env", ())}
            for source in sources:
                found = [one for one in of_kind(manifests, "ConfigMap") if one["metadata"]["name"] == source]
                if not found:
                    yield f"{title(workload)}: ConfigMap/{source} is not among the manifests"
                known |= {key for one in found for key in one["data"]}
            for variable in re.findall(r"\$\((\w+)\)", " ".join(each.get("args", ()))):
                if variable not in known:
                    yield f"{title(workload)}: $({variable}) is defined nowhere"


def selectors_match(manifests: list[Manifest]) -> Iterator[str]:
    labels = {title(each): template["metadata"].get("labels", {}) for each, template in workloads(manifests)}
    for each in of_kind(manifests, "Deployment"):
        if not selects(each["spec"]["selector"], labels[title(each)]):
            yield f"{title(each)}: its selector does not match its own pods"
        for spread in each["spec"]["template"]["spec"].get("topologySpreadConstraints", ()):
            if not selects(spread["labelSelector"], labels[title(each)]):
                yield f"{title(each)}: topology spread does not match its own pods"
    for each in of_kind(manifests, "Service", "PodDisruptionBudget", "PodMonitor"):
        selector = each["spec"]["selector"]
        found = [
            name
            for name, of in labels.items()
            if selects(selector if each["kind"] != "Service" else {"matchLabels": selector}, of)
        ]
        if [name.partition("/")[0] for name in found] != ["Deployment"]:
            yield f"{title(each)}: selects {', '.join(found) or 'nothing'}, wanted the Deployment"


def ports_agree(manifests: list[Manifest]) -> Iterator[str]:
    (deployment,) = of_kind(manifests, "Deployment")
    template, container = serving(manifests)
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    wanted = {"grpc": int(flags(container)["port"]), "http": int(flags(container)["rest_api_port"])}
    if ports != wanted:
        yield f"{title(deployment)}: has ports {ports}, and TensorFlow Serving opens {wanted}"
    for each in of_kind(manifests, "Service"):
        for port in each["spec"]["ports"]:
            if ports.get(port["targetPort"]) != port["port"] or port["name"] != port["targetPort"]:
                yield f"{title(each)}: port {port['name']} {port['port']} leads to {port['targetPort']}"
    for each in of_kind(manifests, "NetworkPolicy"):
        if selects(each["spec"]["podSelector"], template["metadata"]["labels"]):
            for port in (port for rule in each["spec"]["ingress"] for port in rule.get("ports", [{}])):
                if port.get("port") not in ports.values():
                    yield f"{title(each)}: lets port {port.get('port')} in"
    for each in of_kind(manifests, "PodMonitor"):
        for endpoint in each["spec"]["podMetricsEndpoints"]:
            if endpoint["port"] != "http":
                yield f"{title(each)}: scrapes port {endpoint['port']}, the metrics are on http"


def probes_ask_for_the_model(manifests: list[Manifest]) -> Iterator[str]:
    (deployment,) = of_kind(manifests, "Deployment")
    _, container = serving(manifests)
    models = model_config(config_files(manifests).get("models.config", "")).model_config_list.config
    paths = [f"/v1/models/{each.name}" for each in models]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container.get(probe, {}).get("httpGet", {})
        if asked.get("path") not in paths or asked.get("port") != "http":
            yield f"{title(deployment)}: {probe} asks {asked}, wanted one of {paths} on port http"
    seconds = {
        probe: container.get(probe, {}).get("periodSeconds", 10) * container.get(probe, {}).get("failureThreshold", 3)
        for probe in ("readinessProbe", "livenessProbe", "startupProbe")
    }
    if not seconds["readinessProbe"] < seconds["livenessProbe"] < seconds["startupProbe"]:
        yield f"{title(deployment)}: probes give up in the wrong order: {seconds}"


def stops_gracefully(manifests: list[Manifest]) -> Iterator[str]:
    (deployment,) = of_kind(manifests, "Deployment")
    template, container = serving(manifests)
    command = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
    pause = int(command[1]) if command[:1] == ["/bin/sleep"] else 0
    if not 5 <= pause < template["spec"].get("terminationGracePeriodSeconds", 30):
        yield f"{title(deployment)}: preStop {command} leaves no time to drain within the grace period"
    rolling = deployment["spec"].get("strategy", {}).get("rollingUpdate", {})
    if rolling.get("maxUnavailable") != 0 or not rolling.get("maxSurge"):
        yield f"{title(deployment)}: a roll-out takes a pod away before its successor is ready"


def scales_and_survives(manifests: list[Manifest]) -> Iterator[str]:
    (deployment,) = of_kind(manifests, "Deployment")
    target = {"apiVersion": deployment["apiVersion"], "kind": "Deployment", "name": deployment["metadata"]["name"]}
    scalers = of_kind(manifests, "HorizontalPodAutoscaler")
    budgets = of_kind(manifests, "PodDisruptionBudget")
    if [each["spec"]["scaleTargetRef"] for each in scalers] != [target]:
        yield f"{title(deployment)}: is not what the HorizontalPodAutoscaler scales"
    if "replicas" in deployment["spec"]:
        yield f"{title(deployment)}: sets replicas, which the HorizontalPodAutoscaler owns"
    for each in scalers:
        if not 2 <= each["spec"]["minReplicas"] < each["spec"]["maxReplicas"]:
            yield f"{title(each)}: one pod is no redundancy, and the upper bound must leave room"
        for budget in budgets:
            if not 1 <= budget["spec"].get("maxUnavailable", 0) < each["spec"]["minReplicas"]:
                yield f"{title(budget)}: must allow some disruption, and leave a pod"
    if not budgets:
        yield f"{title(deployment)}: has no PodDisruptionBudget"
    topologies = {
        each["topologyKey"] for each in deployment["spec"]["template"]["spec"].get("topologySpreadConstraints", ())
    }
    if topologies != {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}:
        yield f"{title(deployment)}: pods are spread over {topologies or 'nothing'}, wanted nodes and zones"


def every_pod_is_behind_a_network_policy(manifests: list[Manifest]) -> Iterator[str]:
    for workload, template in workloads(manifests):
        policies = [
            each
            for each in of_kind(manifests, "NetworkPolicy")
            if selects(each["spec"]["podSelector"], template["metadata"]["labels"])
        ]
        directions = {direction for each in policies for direction in each["spec"]["policyTypes"]}
        if directions != {"Ingress", "Egress"}:
            yield f"{title(workload)}: network policies cover {directions or 'nothing'}"
        for each in policies:
            if any(not rule.get("from") for rule in each["spec"].get("ingress", ())) or any(
                not rule.get("to") or not rule.get("ports") for rule in each["spec"].get("egress", ())
            ):
                yield f"{title(each)}: a rule is open to everybody"


def configuration_files_are_there(manifests: list[Manifest]) -> Iterator[str]:
    (deployment,) = of_kind(manifests, "Deployment")
    template, container = serving(manifests)
    given, files = flags(container), config_files(manifests)
    mounts = {each["mountPath"]: each for each in container["volumeMounts"]}
    for flag, path in given.items():
        folder, _, name = path.rpartition("/")
        if folder == CONFIG_DIR and name not in files:
            yield f"{title(deployment)}: --{flag}={path} is not in the ConfigMap, which has {sorted(files)}"
        if path.startswith("/") and folder not in mounts:
            yield f"{title(deployment)}: --{flag}={path} is in no mounted folder"
    if set(files) != {"models.config", "batching.config", "monitoring.config"}:
        yield f"{title(deployment)}: the ConfigMap has {sorted(files)}"
    if (given.get("enable_batching") == "true") != ("batching_parameters_file" in given):
        yield f"{title(deployment)}: wants both or none of --enable_batching and --batching_parameters_file"
    for each in model_config(files.get("models.config", "")).model_config_list.config:
        local = each.base_path.startswith("/")
        if local and not any(each.base_path.startswith(f"{path}/") for path in mounts):
            yield f"{title(deployment)}: model {each.name} is in {each.base_path}, where nothing is mounted"
        if not local and not any(of_kind(manifests, "NetworkPolicy")[0]["spec"].get("egress", [])):
            yield f"{title(deployment)}: model {each.name} is in {each.base_path}, and no egress is allowed"
    monitoring = files.get("monitoring.config", "")
    path = re.search(r'path:\s*"([^"]+)"', monitoring)
    annotations = template["metadata"].get("annotations", {})
    monitors = [
        endpoint["path"]
        for each in of_kind(manifests, "PodMonitor")
        for endpoint in each["spec"]["podMetricsEndpoints"]
    ]
    scraped = [annotations["prometheus.io/path"]] if annotations.get("prometheus.io/scrape") == "true" else monitors
    if not re.search(r"enable:\s*true", monitoring) or not path or scraped != [path[1]]:
        yield f"{title(deployment)}: Prometheus asks for {scraped}, and the monitoring file says {monitoring!r}"
    port = annotations.get("prometheus.io/port", given["rest_api_port"])
    if port != given["rest_api_port"]:
        yield f"{title(deployment)}: Prometheus asks port {port}"


def threads_fit_the_limit(manifests: list[Manifest]) -> Iterator[str]:
    (deployment,) = of_kind(manifests, "Deployment")
    _, container = serving(manifests)
    limit = parse_quantity(container.get("resources", {}).get("limits", {}).get("cpu", "0"))
    for flag in ("tensorflow_intra_op_parallelism", "tensorflow_inter_op_parallelism"):
        if not 1 <= int(flags(container).get(flag, 0)) <= limit:
            yield f"{title(deployment)}: --{flag} does not fit the CPU limit of {limit}"


def jobs_end(manifests: list[Manifest]) -> Iterator[str]:
    for each in of_kind(manifests, "Job", "CronJob"):
        job = each["spec"]["jobTemplate"]["spec"] if each["kind"] == "CronJob" else each["spec"]
        missing = {"backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"} - job.keys()
        if missing or job["template"]["spec"].get("restartPolicy") != "Never":
            yield f"{title(each)}: may stay for ever; missing: {', '.join(sorted(missing)) or 'restartPolicy Never'}"
        if job["template"]["metadata"]["labels"].get("sidecar.istio.io/inject") != "false":
            yield f"{title(each)}: an Istio proxy would keep it from ending"
        if each["kind"] == "CronJob" and each["spec"].get("concurrencyPolicy") != "Forbid":
            yield f"{title(each)}: two runs may write at the same time"


def labels_are_common(manifests: list[Manifest]) -> Iterator[str]:
    for each in manifests:
        missing = {"app.kubernetes.io/name", "app.kubernetes.io/component"} - each["metadata"].get("labels", {}).keys()
        if missing and each["kind"] != "ConfigMap":
            yield f"{title(each)}: lacks the labels {', '.join(sorted(missing))}"


RULES: tuple[Rule, ...] = (
    without_privileges,
    without_cluster_rights,
    resources_are_set,
    images_are_pinned,
    references_exist,
    selectors_match,
    ports_agree,
    probes_ask_for_the_model,
    stops_gracefully,
    scales_and_survives,
    every_pod_is_behind_a_network_policy,
    configuration_files_are_there,
    threads_fit_the_limit,
    jobs_end,
    labels_are_common,
)
