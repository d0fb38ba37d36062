#!/usr/bin/env bash
#
# Provokes every failure of host/tests/diagnose/cases.txt on a real systemd, and writes down what systemd and the journal say:
# host/tests/diagnose/records-RELEASE.json, which `cargo test -p evenkeel-host diagnose` judges. Run it (as root, after
# `make tools`) when a case was added, or for another release: tests/record-failures.sh [IMAGE] with an image of
# tests/fetch-tools.sh, `systemd` (this machine's release) when none is named.
#
# The interpreters and servers are Debian's own, downloaded with apt and unpacked over a copy of the image.

set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
images=$repo/.run/tools/images
programs='python3-minimal python3-redis nodejs nginx redis-server curl jq'

base=$(readlink -f "$images/${1:-systemd}.tar")
release=$(basename "$base" .tar)
release=${release#systemd-}
target=$images/failing-$release.tar

if [ "$(cat "$target.packages" 2>/dev/null)" != "$programs" ]; then
    echo "making an image of $release with $programs"
    tree=$(mktemp -d "$repo/.run/tools/tree.XXXXXX")
    tar -C "$tree" -xf "$base"
    mkdir -p "$tree.debs/partial"
    # What the image has is known to its own dpkg; apt adds what else these need.
    # shellcheck disable=SC2086  # they are several words
    apt-get -qq -y --no-install-recommends --download-only -o APT::Sandbox::User=root \
        -o Dir::State::status="$tree/var/lib/dpkg/status" -o Dir::Cache::archives="$tree.debs" install $programs
    # In the image /bin, /sbin and /lib are links, which dpkg -x would replace.
    for package in "$tree.debs"/*.deb; do
        dpkg-deb --fsys-tarfile "$package" | tar -C "$tree" --keep-directory-symlink -xf -
    done
    tar -C "$tree" --numeric-owner -cf "$target.new" .
    mv "$target.new" "$target"
    echo "$programs" >"$target.packages"
    rm -rf --one-file-system -- "$tree" "$tree.debs"
fi

cd "$repo"
exec cargo run -p evenkeel-tests --example record_failures -- "failing-$release" \
    "$repo/host/tests/diagnose/records-$release.json"
