#!/usr/bin/env bash
#
# A tarball of both binaries with everything that is shipped with them, in FOLDER, and SHA256SUMS of what lies there. From
# a clone: what git does not know is not in it, and the same commit makes the same bytes. After packaging/deb/build.sh,
# which has the programs write manual pages and completions.
#
#   packaging/tarball.sh PROFILE FOLDER

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

profile=${1:?a profile of cargo} folder=${2:?a folder for the tarball}
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
name=evenkeel-$version.linux-$(dpkg --print-architecture)

mkdir -p "$folder"
rm -f "$folder"/evenkeel-*.tar.gz
git ls-files -z LICENSE README.md CHANGELOG.md alerts docs grafana packaging |
    tar --create --null --files-from=- \
        --directory="target/$profile" evenkeel-exporter evenkeel-remediator \
        --directory=../packaging --sort=name man completions \
        --format=gnu --mtime="@$(git log -1 --format=%ct)" --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX \
        --transform="s,^,$name/," |
    gzip --best --no-name >"$folder/$name.tar.gz"
cd "$folder"
sha256sum evenkeel-* >SHA256SUMS
