#!/usr/bin/env bash
#
# Debian packages of both binaries as cargo has built them, by cargo-deb (tests/fetch-tools.sh deb). What is in them is
# said in the crates' Cargo.toml.
#
#   packaging/deb/build.sh PROFILE FOLDER [FLAG OF CARGO-DEB...]

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

profile=${1:?a profile of cargo} folder=${2:?a folder for the packages}
shift 2

# The time of the last commit in all of it: the same sources make the same package.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH

mkdir -p "$folder"
for package in evenkeel-exporter evenkeel-remediator; do
    rm -f "$folder/$package"_*.deb
    cargo deb --quiet --no-build --locked --profile "$profile" --package "$package" --output "$folder/" "$@"
done
