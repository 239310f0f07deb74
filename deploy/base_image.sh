#!/usr/bin/env bash
# Makes a base image for the Dockerfile from Debian's packages, for machines that reach no
# registry of images: Python with venv, CA certificates, and nothing else of note.
#
#   deploy/base_image.sh [TAG]
#   docker build --build-arg BASE=TAG -t twisted-kvs .
#
# Needs root, debootstrap, tar and the engine.  An image that this script made before from
# the same inputs is used again.  Environment:
#
#   TAG's default       kvs-base
#   SUITE               Debian's release, default trixie
#   MIRROR              of Debian's packages, default: the one that apt uses here
#   CA_BUNDLE           file with CA certificates for pip, where the package index shows
#                       one of a private CA; it goes into the image, with PIP_CERT set
set -euo pipefail

tag=${1:-kvs-base}
suite=${SUITE:-trixie}
ca_bundle=${CA_BUNDLE:-}
label=twisted-kvs.base

for tool in debootstrap docker tar; do
    command -v "$tool" >/dev/null || {
        echo "base_image.sh: $tool is missing: apt-get install debootstrap docker.io" >&2
        exit 1
    }
done
docker version >/dev/null || {
    echo "base_image.sh: the Docker engine does not answer: is dockerd running?" >&2
    exit 1
}

# What it is made of; packages get newer, so it is made anew every month.
inputs=$({
    cat "$0" ${ca_bundle:+"$ca_bundle"}
    echo "$suite" "${MIRROR:-}" "$(date -u +%Y-%m)"
} | sha256sum | cut -d' ' -f1)
if [ "$(docker image inspect -f "{{index .Config.Labels \"$label\"}}" "$tag" \
    2>/dev/null)" = "$inputs" ]; then
    echo "$tag is there already, made from the same"
    exit 0
fi

mirror=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' \
    'Created-By: Packages' 2>/dev/null | grep -m 1 '/debian/$' || true)}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
root=$tmp/root

debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates \
    "$suite" "$root" ${mirror:+"$mirror"} >"$tmp/log" 2>&1 || {
    tail -n 20 "$tmp/log" "$root/debootstrap/debootstrap.log" >&2 || true
    exit 1
}
changes=(--change "LABEL $label=$inputs")
if [ -n "$ca_bundle" ]; then
    install -m 644 "$ca_bundle" "$root/etc/ssl/certs/pip.pem"
    changes+=(--change "ENV PIP_CERT=/etc/ssl/certs/pip.pem")
fi
# As in Debian's own slim images: what is read by people only (but for the licenses), and
# what apt can fetch.
find "$root/usr/share/doc" -not -type d -not -name copyright -delete
tar -C "$root" -c --numeric-owner \
    --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' \
    --exclude='./var/log/*' --exclude='./usr/share/locale/*' \
    --exclude='./usr/share/man/*' --exclude='./usr/share/info/*' \
    --exclude='./dev/*' . |
    docker import "${changes[@]}" --change 'CMD ["python3"]' - "$tag"
docker image inspect -f '{{.RepoTags}} {{.Size}} bytes' "$tag"
