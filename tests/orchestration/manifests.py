"""What packaging/kubernetes says, checked without a cluster: manifests.py RTSPRELAY METRICS, with the program and a file of its /metrics.

Prints what is wrong, a line each, and ends with 1 if anything is.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import jsonschema
import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "packaging" / "kubernetes"
RELEASE = "1.30"
# The last one: a whole installation.
WHOLE = ["base", "io-uring", "autoscaling/keda", "example"]

wrong = []


def expect(holds, what):
    if not holds:
        wrong.append(what)


def built(directory):
    made = subprocess.run(["kubectl", "kustomize", KUBERNETES / directory], capture_output=True, text=True)
    expect(made.returncode == 0, f"{directory}: {made.stderr}")
    return [document for document in yaml.safe_load_all(made.stdout) if document]


def is_custom(document):
    return (KUBERNETES / "schemas" / f"{document['kind'].lower()}.json").exists()


def check_schema(directory, document):
    what = f"{directory}: {document['kind']} {document['metadata']['name']}"
    try:
        if is_custom(document):
            schema = json.loads((KUBERNETES / "schemas" / f"{document['kind'].lower()}.json").read_text())
            jsonschema.validate(document, schema)
        else:
            kubernetes_validate.validate(document, RELEASE, strict=True)
    except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
        wrong.append(f"{what}: {error.message} at {list(error.path)}")


def pods(documents):
    return [document for document in documents if document["kind"] in ("Deployment", "StatefulSet")]


def check_pod(directory, document):
    what = f"{directory}: {document['metadata']['name']}"
    spec = document["spec"]["template"]["spec"]
    expect(spec["securityContext"]["runAsNonRoot"] is True, f"{what} may run as root")
    profile = spec["securityContext"]["seccompProfile"]["type"]
    expect(profile == ("Localhost" if directory == "io-uring" else "RuntimeDefault"), f"{what}: {profile}")
    expect(spec["automountServiceAccountToken"] is False, f"{what} has a token for the cluster")
    for container in spec["containers"]:
        security = container["securityContext"]
        expect(security["readOnlyRootFilesystem"] is True, f"{what}: the root is writable")
        expect(security["allowPrivilegeEscalation"] is False, f"{what}: may gain privileges")
        expect(security["capabilities"] == {"drop": ["ALL"]}, f"{what}: {security['capabilities']}")
        expect("command" not in container, f"{what}: the image has no shell")
        expect(container["readinessProbe"]["httpGet"]["path"] == "/healthz", f"{what}: readiness")
        expect(container["livenessProbe"]["httpGet"]["path"] == "/livez", f"{what}: liveness")
        mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
        expect(all("subPath" not in mount for mount in mounts.values()), f"{what}: what is mounted by subPath never changes")


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(ms|s|m)", text).groups()
    return int(number) * {"ms": 0.001, "s": 1, "m": 60}[unit]


def check_configuration(relay, documents):
    """The configurations are right, and the time that they take to leave is theirs."""
    maps = {document["metadata"]["name"]: document["data"] for document in documents if document["kind"] == "ConfigMap"}
    secret = next(document for document in documents if document["kind"] == "Secret")
    for pod in pods(documents):
        name = pod["metadata"]["name"]
        text = maps[name]["rtsprelay.toml"]
        # The top level ends at the first table. Parsed by hand, because older Pythons have no TOML parser.
        top = dict(re.findall(r'^(\w+) = "?([^"\n]*?)"?(?:\s+#.*)?$', text.split("\n[")[0], re.MULTILINE))
        takes = seconds(top["drain"]) + seconds(top["drain_delay"]) + 2
        grace = pod["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        expect(grace > takes, f"{name}: it takes {takes} s to leave, and has {grace} s")
        expect(top["reload_on_change"] == "true", f"{name}: nobody sends SIGHUP there")
        environment = {"PATH": os.environ["PATH"]}
        for variable in pod["spec"]["template"]["spec"]["containers"][0]["env"]:
            source = variable.get("valueFrom", {})
            if "secretKeyRef" in source:
                environment[variable["name"]] = secret["stringData"][source["secretKeyRef"]["key"]]
            else:
                environment[variable["name"]] = variable.get("value", "0")
        with tempfile.TemporaryDirectory() as directory:
            for key, value in secret["stringData"].items():
                (pathlib.Path(directory) / key).write_text(value)
            file = pathlib.Path(directory) / "rtsprelay.toml"
            file.write_text(text.replace("/etc/rtsprelay/secrets", directory))
            checked = subprocess.run([relay, "check", "--config", file], capture_output=True, text=True, env=environment)
            expect(checked.returncode == 0, f"{name}: {checked.stderr}")
            expect("change-me" not in checked.stdout + checked.stderr, f"{name}: a password is shown")


def check_selectors(directory, documents):
    """Services and budgets select the pods that there are."""
    labels = [pod["spec"]["template"]["metadata"]["labels"] for pod in pods(documents)]
    for document in documents:
        if document["kind"] == "Service":
            wanted = document["spec"]["selector"]
        elif document["kind"] == "PodDisruptionBudget":
            wanted = document["spec"]["selector"]["matchLabels"]
        else:
            continue
        found = [of for of in labels if wanted.items() <= of.items()]
        expect(len(found) == 1, f"{directory}: {document['kind']} {document['metadata']['name']} selects {len(found)} kinds of pods")


def check_metrics(texts, metrics):
    """Each name, each label and each value of a label that is asked for is one that the relay tells."""
    told = {}
    for line in metrics.splitlines():
        found = re.match(r"(rtsprelay_\w+)(?:\{(.*)\})? ", line)
        if found:
            labels = told.setdefault(found[1], {})
            for label, value in re.findall(r'(\w+)="([^"]*)"', found[2] or ""):
                labels.setdefault(label, set()).add(value)
    expect(len(told) > 50, f"few metrics: {sorted(told)}")
    # Labels that Prometheus adds, and those that differ between relays.
    free = {"instance", "stream", "job", "namespace", "pod", "service", "le"}
    asked = set()
    for where, text in texts.items():
        for name, selector in re.findall(r"\b(rtsprelay_[a-z0-9_]+)(?:\{([^}]*)\})?", text):
            if where.endswith("values.yaml") and name not in told:
                name = "rtsprelay_clients"
            asked.add(name)
            expect(name in told, f"{where}: there is no {name}")
            for label, values in re.findall(r'(\w+)\s*(?:=~|!=|!~|=)\s*"([^"]*)"', selector or ""):
                if label in free:
                    continue
                known = told.get(name, {}).get(label, set())
                expect(set(values.split("|")) <= known, f"{where}: {name} has no {label} in {values}: {sorted(known)}")
        for names in re.findall(r"\bby \(([\w, ]+)\)", text):
            every = free.union(*(set(labels) for labels in told.values()))
            expect({name.strip() for name in names.split(",")} <= every, f"{where}: by ({names})")
    expect(len(asked) > 20, f"only {sorted(asked)} are asked for")


def check_rules(documents):
    for document in documents:
        if document["kind"] != "PrometheusRule":
            continue
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump(document["spec"], file)
            file.flush()
            checked = subprocess.run(["promtool", "check", "rules", file.name], capture_output=True, text=True)
            expect(checked.returncode == 0, checked.stdout + checked.stderr)
            count = sum(len(group["rules"]) for group in document["spec"]["groups"])
            expect(f"{count} rules found" in checked.stdout, checked.stdout)


def main():
    relay, metrics = sys.argv[1], pathlib.Path(sys.argv[2]).read_text()
    for directory in WHOLE:
        documents = built(directory)
        expect(documents, f"{directory}: nothing is built")
        for document in documents:
            check_schema(directory, document)
        for pod in pods(documents):
            check_pod(directory, pod)
        if pods(documents):
            check_selectors(directory, documents)
            check_configuration(relay, documents)
        check_rules(documents)
        if directory == "example":
            kinds = {document["kind"] for document in documents}
            for kind in ("Deployment", "StatefulSet", "HorizontalPodAutoscaler", "PodDisruptionBudget", "ServiceMonitor", "PrometheusRule"):
                expect(kind in kinds, f"{directory} has no {kind}")
    for name in ("edges", "origins"):
        profile = yaml.safe_load((KUBERNETES / "io-uring" / f"{name}.yaml").read_text())
        expect("rtsprelay/rtsprelay.json" in json.dumps(profile), f"io-uring/{name}.yaml names another profile")
    operators = yaml.safe_load((KUBERNETES / "io-uring" / "operator" / "seccompprofile.yaml").read_text())
    check_schema("io-uring", operators)
    ours = json.loads((ROOT / "packaging" / "container" / "seccomp.json").read_text())
    expect(operators["spec"]["syscalls"] == ours["syscalls"], "the operator's profile allows other calls than the image's")
    allowed = ours["syscalls"][0]["names"]
    expect({"io_uring_setup", "io_uring_enter", "io_uring_register"} <= set(allowed), "the profile refuses io_uring")
    files = ["monitoring/rules.yaml", "monitoring/rtsprelay.json", "autoscaling/adapter/autoscaler.yaml"]
    files += ["autoscaling/adapter/values.yaml", "autoscaling/keda/scaledobject.yaml"]
    texts = {name: (KUBERNETES / name).read_text().replace('\\"', '"') for name in files}
    check_metrics(texts, metrics)
    for line in wrong:
        print(line)
    sys.exit(1 if wrong else 0)


main()
