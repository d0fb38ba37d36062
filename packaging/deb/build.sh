#!/usr/bin/env bash
#
# Debian packages of both binaries as cargo has built them, by cargo-deb (tests/fetch-tools.sh deb). What is in them is
# said in the crates' Cargo.toml; what the programs write about themselves lies in target/packaging.
#
#   packaging/deb/build.sh PROFILE FOLDER [FLAG OF CARGO-DEB...]

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

profile=${1:?a profile of cargo} folder=${2:?a folder for the packages}
shift 2
binaries=${CARGO_TARGET_DIR:-target}/$profile
# Cargo's one exception.
if [ "$profile" = dev ]; then binaries=${binaries%dev}debug; fi

# The time of the last commit in all of it: the same sources make the same package.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH

written=target/packaging
rm -rf -- "$written"
mkdir -p "$folder" "$written/completions"

# Of the package, in Debian's form; what has changed in the programs is in CHANGELOG.md, which lies beside it.
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
cat >"$written/changelog" <<EOF
evenkeel ($version-1) unstable; urgency=medium

  * Version $version; what has changed is in changelog.gz.

 -- The evenkeel authors <maintainers@evenkeel.invalid>  $(LC_ALL=C date --utc --rfc-email --date="@$SOURCE_DATE_EPOCH")
EOF

for package in evenkeel-exporter evenkeel-remediator; do
    "$binaries/$package" generate man --dir "$written/man"
    for shell in bash zsh fish; do
        "$binaries/$package" generate completions "$shell" >"$written/completions/$package.$shell"
    done
    rm -f -- "$folder/$package"_*.deb
    cargo deb --quiet --no-build --locked --profile "$profile" --package "$package" --output "$folder/" "$@"
done
