#!/usr/bin/env bash
# Installs the real clients and registries that tests/clients drives: Debian's packages through apt, the rest
# with `go install` at pinned versions. Needs root and Debian 12, or a machine that has them all already.
# Run again it only looks whether everything is there.
set -euo pipefail

CONTAINERD=v2.4.2
DISTRIBUTION=v3.1.1
CRANE=v0.22.1
CONFORMANCE=v0.0.0-20260831232431-97274622c111
HELM=v4.3.2
KUBECONFORM=v0.8.0
KUBERNETES_VALIDATE=1.37.0
VERSITYGW=v1.8.0

# Debian's containerd and the Go one share a name, so the Go builds live in a folder of their own.
bin="${CLIENTS_BIN:-$(cd "$(dirname "$0")/../.." && pwd)/.clients/bin}"
mkdir -p "$bin"

packages=(docker-registry containerd runc docker.io docker-compose podman skopeo buildah debootstrap uidmap iptables openssl
    chromium fonts-dejavu-core pngquant wrk hey nginx-light redis-server haproxy iproute2 prometheus curl)
missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if ((${#missing[@]})); then
    apt-get update -q
    # policy-rc.d: the packages' own daemons must not start, every test starts its own.
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
        chmod +x /usr/sbin/policy-rc.d
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
fi

go_install() { # NAME MODULE VERSION: builds MODULE into $bin/NAME unless that version stands there
    local name=$1 module=$2 version=$3
    [ "$(cat "$bin/.$name.version" 2>/dev/null)" = "$version" ] && [ -x "$bin/$name" ] && return 0
    echo "building $name $version"
    local staging
    staging=$(mktemp -d)
    GOBIN="$staging" GOFLAGS=-mod=mod CGO_ENABLED=0 go install "$module@$version"
    mv "$staging"/* "$bin/$name"
    rmdir "$staging"
    echo "$version" >"$bin/.$name.version"
}

go_install crane github.com/google/go-containerregistry/cmd/crane "$CRANE"
go_install distribution github.com/distribution/distribution/v3/cmd/registry "$DISTRIBUTION"
go_install conformance github.com/opencontainers/distribution-spec/conformance "$CONFORMANCE"
go_install ctr2 github.com/containerd/containerd/v2/cmd/ctr "$CONTAINERD"
go_install containerd2 github.com/containerd/containerd/v2/cmd/containerd "$CONTAINERD"
go_install versitygw github.com/versity/versitygw/cmd/versitygw "$VERSITYGW"
go_install helm helm.sh/helm/v4/cmd/helm "$HELM"
go_install kubeconform github.com/yannh/kubeconform/cmd/kubeconform "$KUBECONFORM"

# Kubernetes' JSON schemas for kubeconform, which would fetch them one by one: out of the package that ships them all.
schemas="$(dirname "$bin")/kubernetes-schemas"
if [ "$(cat "$schemas/.version" 2>/dev/null)" != "$KUBERNETES_VALIDATE" ]; then
    echo "unpacking Kubernetes' schemas"
    staging=$(mktemp -d)
    python="$(dirname "$0")/../../.venv/bin/python" # make's; Debian's own may have no pip
    [ -x "$python" ] || python=python3
    "$python" -m pip install -q --disable-pip-version-check --root-user-action ignore --no-deps --target "$staging" \
        "kubernetes-validate==$KUBERNETES_VALIDATE"
    rm -rf "$schemas"
    mv "$staging/kubernetes_validate/kubernetes-json-schema" "$schemas"
    rm -rf "$staging"
    echo "$KUBERNETES_VALIDATE" >"$schemas/.version"
fi
