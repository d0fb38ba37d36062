#!/usr/bin/env bash
#
# Puts the programs that the lab and `make up` start into .run/tools/bin, and nothing anywhere else.
#
#   tests/fetch-tools.sh build          a compiler and the pinned Rust toolchain
#   tests/fetch-tools.sh up             Prometheus and Alertmanager
#   tests/fetch-tools.sh host           these, and what a private host is made of: Docker, Redis, busybox, a systemd image
#   tests/fetch-tools.sh deb            cargo-deb
#   tests/fetch-tools.sh lab            all of these, node_exporter, redis_exporter, webhook, HAProxy, further images
#   tests/fetch-tools.sh image RELEASE  one more systemd image (for example trixie)
#   tests/fetch-tools.sh engine RELEASE one more Docker engine, in a tree of its own
#
# What the machine has is used from where it is. The rest is downloaded with apt and unpacked, not
# installed: installing these packages would enable and start system-wide daemons. Run again it is
# done at once; it works without a network when everything is there.

set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tools=$repo/.run/tools
bin=$tools/bin
root=$tools/root      # every package is unpacked here
images=$tools/images
log=$tools/fetch.log

fail() {
    printf 'fetch-tools: %s\n' "$*" >&2
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# ---- apt -----------------------------------------------------------------------------------------

need_apt() {
    if have apt-get && have dpkg; then return; fi
    fail "$1 is not on this machine, and fetching it needs apt (Debian or Ubuntu): install it, then run this again"
}

# As root apt would drop to a user that cannot write into this folder, and warn.
apt_get() { apt-get -o APT::Sandbox::User=root "$@"; }

# Package lists may be missing (a fresh container) or stale (a version that the mirror has dropped).
refreshed=
refresh_lists() {
    [ -z "$refreshed" ] || return 0
    refreshed=1
    [ "$(id -u)" = 0 ] || return 0
    apt_get -qq update >>"$log" 2>&1 || true
}

known() { # known PACKAGE...: those of them that this release has
    apt-cache --no-all-versions show "$@" 2>/dev/null | sed -n 's/^Package: //p' | sort -u
}

unpack() { # unpack PACKAGE...: downloads and unpacks; a package this release does not have is left out
    [ $# -gt 0 ] || return 0
    local package wanted downloads
    mapfile -t wanted < <(known "$@")
    if [ ${#wanted[@]} -lt $# ]; then
        refresh_lists
        mapfile -t wanted < <(known "$@")
    fi
    [ ${#wanted[@]} -gt 0 ] || return 0
    downloads=$(mktemp -d "$tools/download.XXXXXX")
    if ! (cd "$downloads" && apt_get download "${wanted[@]}" >>"$log" 2>&1); then
        refresh_lists
        (cd "$downloads" && apt_get download "${wanted[@]}" >>"$log" 2>&1) || {
            rm -rf "$downloads"
            fail "cannot download ${wanted[*]}: is the package mirror reachable? (see $log)"
        }
    fi
    for package in "$downloads"/*.deb; do
        dpkg -x "$package" "$root"
    done
    rm -rf "$downloads"
}

# The packages, by pattern, that the named ones need and that the machine does not have.
missing_dependencies() { # missing_dependencies PATTERN PACKAGE...
    local pattern=$1 package
    shift
    apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
        --no-replaces --no-enhances "$@" 2>/dev/null | grep -E "^($pattern)\$" | sort -u |
        while read -r package; do
            dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q ' installed$' || echo "$package"
        done
}

install() { # install COMMAND PACKAGE...: compilers and the like, which start nothing
    local command=$1
    shift
    [ "$(id -u)" = 0 ] || fail "$command is missing: sudo apt-get install $*"
    need_apt "$command"
    [ -n "$(known "$1")" ] || refresh_lists
    [ -n "$(known "$1")" ] || fail "$command is missing and this release has no package $1: install it, then run this again"
    echo "installing $*"
    DEBIAN_FRONTEND=noninteractive apt_get -y -qq --no-install-recommends --no-remove install "$@" >>"$log" 2>&1 ||
        fail "cannot install $* (see $log): install it, then run this again"
}

# ---- one program in .run/tools/bin -----------------------------------------------------------------

library_path() { # the folders of unpacked libraries
    find "$root/usr/lib" "$root/lib" -name 'lib*.so.*' -printf '%h\n' 2>/dev/null | sort -u | paste -sd:
}

# Reads all that ldd says: a grep that left early would break the pipe, and ldd's failure hide the answer.
lacks_libraries() { ldd "$1" 2>/dev/null | grep 'not found' >/dev/null; }

from_machine() { # from_machine NAME COMMAND
    ln -sfn "$(command -v "$2")" "$bin/$1"
}

# Links NAME to a program of the packages, or writes a wrapper when it needs unpacked libraries or a flag.
from_packages() { # from_packages NAME PATH [FLAG]: PATH inside the unpacked packages
    local name=$1 program=$root/$2 flag=${3:-} libraries=
    [ -x "$program" ] || fail "the packages of this release have no $2"
    if lacks_libraries "$program"; then libraries=$(library_path); fi
    if [ -n "$libraries" ] && LD_LIBRARY_PATH=$libraries lacks_libraries "$program"; then
        fail "$2 lacks shared libraries: $(LD_LIBRARY_PATH=$libraries ldd "$program" | grep 'not found' | xargs)"
    fi
    if [ -z "$libraries$flag" ]; then
        ln -sfn "$program" "$bin/$name"
        return
    fi
    {
        echo '#!/bin/sh'
        if [ -n "$libraries" ]; then
            echo "export LD_LIBRARY_PATH='$libraries'\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
        fi
        echo "exec '$program'${flag:+ $flag} \"\$@\""
    } >"$bin/$name.new"
    chmod 755 "$bin/$name.new"
    mv -T "$bin/$name.new" "$bin/$name"
}

fetch() { # fetch NAME PATH PACKAGE...: the packages, the libraries they need, and the program NAME
    local name=$1 path=$2 libraries
    shift 2
    need_apt "$name"
    [ -x "$root/$path" ] || unpack "$@"
    if [ -x "$root/$path" ] && lacks_libraries "$root/$path"; then
        mapfile -t libraries < <(missing_dependencies 'lib[a-z0-9.+-]+' "$@")
        unpack "${libraries[@]}"
    fi
    from_packages "$name" "$path"
}

# ---- the bundles: a set of programs that belong together comes from one place ---------------------

runs() { "$1" --version >/dev/null 2>&1; }

# A docker client from 23 on builds with BuildKit only when it has the buildx plugin.
can_build() {
    docker buildx version >/dev/null 2>&1 && return
    local major
    major=$(docker --version 2>/dev/null | sed -n 's/^Docker version \([0-9]*\).*/\1/p')
    [ "${major:-99}" -ge 18 ] && [ "${major:-99}" -lt 23 ]
}

bundle_prometheus() {
    if have prometheus && runs prometheus && have promtool; then
        from_machine prometheus prometheus
        from_machine promtool promtool
        return
    fi
    fetch promtool usr/bin/promtool prometheus
    # Debian's Prometheus reads its web pages from files that lie in packages of their own.
    local pages=
    if [ -d "$root/usr/share/prometheus/web" ]; then
        mapfile -t scripts < <(missing_dependencies '(libjs|fonts)-[a-z0-9.+-]+' prometheus)
        unpack "${scripts[@]}"
        pages="--web.local-assets='$root/usr/share/prometheus/web'"
    fi
    from_packages prometheus usr/bin/prometheus "$pages"
}

bundle_alertmanager() {
    local name
    for name in alertmanager prometheus-alertmanager; do
        if have "$name" && runs "$name" && have amtool; then
            from_machine alertmanager "$name"
            from_machine amtool amtool
            return
        fi
    done
    fetch amtool usr/bin/amtool prometheus-alertmanager
    fetch alertmanager usr/bin/prometheus-alertmanager prometheus-alertmanager
    if [ -d "$root/usr/share/prometheus/alertmanager" ]; then show_share "$bin/alertmanager"; fi
}

# Debian's Alertmanager reads its templates from a fixed path, which is not there when it is not
# installed. So it gets a view of its own in which the unpacked files lie over the machine's.
show_share() { # show_share PROGRAM: replaces the link PROGRAM by a wrapper
    local program
    program=$(readlink "$1")
    cat >"$1.new" <<EOF
#!/bin/sh
own=--mount
[ "\$(id -u)" = 0 ] || own='--mount --user --map-root-user'
exec unshare \$own -- sh -c '
    mount -t overlay -o "ro,lowerdir=$root/usr/share:/usr/share" tools /usr/share || exit 1
    exec "$program" "\$@"' alertmanager "\$@"
EOF
    chmod 755 "$1.new"
    mv -T "$1.new" "$1"
}

bundle_engine() {
    local program programs found complete=yes
    programs=$(programs_of engine)
    for program in $programs; do
        have "$program" || complete=
    done
    if [ -n "$complete" ] && runs dockerd && runs containerd && runs runc && can_build; then
        for program in $programs; do
            from_machine "$program" "$program"
        done
        return
    fi
    need_apt dockerd
    # Newer releases split the client and its builder off; unpack leaves out what a release does not have.
    unpack docker.io docker-cli docker-buildx containerd runc
    for program in $programs; do
        found=usr/bin/$program
        if [ -x "$root/usr/sbin/$program" ]; then found=usr/sbin/$program; fi
        fetch "$program" "$found" docker.io containerd runc
    done
}

bundle_redis() {
    if have redis-server && runs redis-server; then
        from_machine redis-server redis-server
        return
    fi
    fetch redis-server usr/bin/redis-server redis-server redis-tools
}

# To be compared with: what our series say must be what theirs say.
bundle_exporters() {
    local name
    for name in node_exporter redis_exporter; do
        if have "$name" && runs "$name"; then
            from_machine "$name" "$name"
        elif have "prometheus-${name/_/-}"; then
            from_machine "$name" "prometheus-${name/_/-}"
        else
            fetch "$name" "usr/bin/prometheus-${name/_/-}" "prometheus-${name/_/-}"
        fi
    done
}

# The plain handler that the remediator is compared with: a webhook runs a command.
bundle_webhook() {
    # Other programs have this name too.
    if have webhook && webhook -version 2>/dev/null | grep '^webhook version' >/dev/null; then
        from_machine webhook webhook
        return
    fi
    fetch webhook usr/bin/webhook webhook
}

bundle_haproxy() {
    # Haproxy has no --version.
    if have haproxy && haproxy -v >/dev/null 2>&1; then
        from_machine haproxy haproxy
        return
    fi
    fetch haproxy usr/sbin/haproxy haproxy
}

bundle_busybox() {
    if have busybox && ! ldd "$(command -v busybox)" >/dev/null 2>&1; then
        from_machine busybox busybox
        return
    fi
    need_apt busybox
    unpack busybox-static
    local program=bin/busybox
    if [ ! -x "$root/$program" ]; then program=usr/bin/busybox; fi
    from_packages busybox "$program"
}

# Debian has no package of it, so it is built: for this machine and for once, hence without what takes long.
bundle_cargo_deb() {
    local version=3.8.0
    if have cargo-deb && [ "$(cargo-deb --version 2>/dev/null)" = "cargo-deb $version" ]; then
        from_machine cargo-deb cargo-deb
        return
    fi
    PATH=$bin:$PATH CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=1 \
        cargo install --quiet --locked --root "$tools/cargo-deb" "cargo-deb@$version" >>"$log" 2>&1 ||
        fail "cannot build cargo-deb $version (see $log)"
    ln -sfn "$tools/cargo-deb/bin/cargo-deb" "$bin/cargo-deb"
}

# Every bundle's programs, so that a second run can tell at once that nothing is missing.
programs_of() {
    case $1 in
    prometheus) echo prometheus promtool ;;
    alertmanager) echo alertmanager amtool ;;
    engine) echo dockerd docker containerd containerd-shim-runc-v2 runc ;;
    redis) echo redis-server ;;
    exporters) echo node_exporter redis_exporter ;;
    webhook) echo webhook ;;
    busybox) echo busybox ;;
    haproxy) echo haproxy ;;
    cargo_deb) echo cargo-deb ;;
    esac
}

ready() {
    [ "$(cat "$tools/$1.ready" 2>/dev/null)" = "$edition" ] || return 1
    local program
    for program in $(programs_of "$1"); do
        [ -x "$bin/$program" ] || return 1
    done
}

provide() {
    local bundle
    for bundle in "$@"; do
        ready "$bundle" && continue
        echo "fetching $bundle"
        "bundle_$bundle"
        echo "$edition" >"$tools/$bundle.ready"
    done
}

# ---- the systemd image -----------------------------------------------------------------------------

default_release() {
    # Debian's mirrors carry its other releases too; an Ubuntu machine's carries its own.
    if [ "${ID:-}" = debian ]; then echo bookworm; else echo "${VERSION_CODENAME:-}"; fi
}

mirror() { # the archive that this machine's apt is configured with
    # shellcheck disable=SC2016  # these are apt's own variables
    apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' 2>/dev/null |
        awk -v codename="${VERSION_CODENAME:-}" '$2 == codename && $3 == "main" { print $1; exit }'
}

debootstrap_tree() { # debootstrap_tree RELEASE PACKAGES TREE: makes TREE, which is not there yet
    local release=$1 packages=$2 tree=$3 archive components=main
    [ "$(id -u)" = 0 ] || fail "making a tree of $release needs root"
    need_apt debootstrap
    archive=$(mirror)
    [ -n "$archive" ] || { refresh_lists && archive=$(mirror); }
    [ -n "$archive" ] || fail "this machine's apt names no archive for ${VERSION_CODENAME:-this release}"
    unpack debootstrap
    # debootstrap downloads with wget and checks signatures with gpgv.
    have wget || fetch wget usr/bin/wget wget
    have gpgv || have sqv || fetch gpgv usr/bin/gpgv gpgv
    # On Ubuntu what other distributions have in main may be there.
    if [ "$ID" = ubuntu ]; then components=main,universe; fi
    # In a mount namespace of its own, so that what debootstrap mounts ends with it, however it ends.
    if ! PATH=$bin:$PATH DEBOOTSTRAP_DIR=$root/usr/share/debootstrap unshare --mount \
        "$root/usr/sbin/debootstrap" --variant=minbase --components="$components" --include="$packages" \
        "$release" "$tree" "$archive" >>"$log" 2>&1; then
        rm -rf --one-file-system "$tree"
        fail "cannot make a tree of $release: is the package mirror reachable? (see $log)"
    fi
    # What only takes room.
    rm -rf "$tree"/var/cache/apt/archives/*.deb "$tree"/var/lib/apt/lists/* \
        "$tree"/usr/share/{doc,man,locale,info}
}

# The newer engines need newer libraries, and what they start does too: they run with the tree as their root.
engine() { # engine RELEASE: a tree with this release's Docker engine
    local release=$1 target tree
    target=$tools/engines/$release
    [ ! -d "$target" ] || return 0
    echo "making the tree of the engine ($release), about a minute"
    mkdir -p "$tools/engines"
    tree=$tools/tree.$$
    debootstrap_tree "$release" docker.io,containerd,runc "$tree"
    mv -T "$tree" "$target"
}

image() { # image RELEASE: a minimal tree with systemd, a bus, polkit and Python's Redis client, as one tar file
    local release=$1 target tree packages
    # debootstrap does not find by itself what provides polkitd's logind.
    packages=systemd,systemd-sysv,dbus,libpam-systemd,polkitd,python3-redis
    target=$images/systemd-$release.tar
    if [ -s "$target" ] && [ "$(cat "$target.packages" 2>/dev/null)" = "$packages" ]; then return; fi
    echo "making the systemd image ($release), about half a minute"
    tree=$tools/tree.$$
    debootstrap_tree "$release" "$packages" "$tree"
    # Every container makes its own, and not from the one that D-Bus was installed with.
    : >"$tree/etc/machine-id"
    rm -f "$tree/var/lib/dbus/machine-id"
    mkdir -p "$images" "$tree/var/log/journal"
    tar -C "$tree" --numeric-owner -cf "$target.new" .
    mv "$target.new" "$target"
    echo "$packages" >"$target.packages"
    rm -rf --one-file-system "$tree"
}

# What `make up` and `make demo` start: nobody who only wants to look should wait for what tests compare it with.
host_tools() {
    have mkfs.ext4 || PATH=$PATH:/usr/sbin:/sbin
    have mkfs.ext4 || install mkfs.ext4 e2fsprogs
    provide prometheus alertmanager engine redis busybox
    local release
    release=$(default_release)
    image "$release"
    ln -sfn "systemd-$release.tar" "$images/systemd.tar"
}

# ---- what it takes to build ------------------------------------------------------------------------

build_tools() {
    if ! have cc || ! have make; then install cc gcc libc6-dev make; fi
    local wanted rustup own toolchain program
    local programs='cargo rustc rustdoc cargo-clippy clippy-driver cargo-fmt rustfmt'
    wanted=$(sed -n 's/^channel = "\(.*\)"/\1/p' "$repo/rust-toolchain.toml")
    for program in $programs; do rm -f "$bin/$program"; done
    if builds "$wanted"; then return; fi
    rustup=$(command -v rustup || true)
    if [ -z "$rustup" ] && [ -n "${SUDO_USER:-}" ]; then
        # sudo hides what its caller has.
        own=$(getent passwd "$SUDO_USER" | cut -d: -f6)
        if [ -x "$own/.cargo/bin/rustup" ]; then
            rustup=$own/.cargo/bin/rustup
            export RUSTUP_HOME=$own/.rustup
        fi
    fi
    if [ -z "$rustup" ]; then
        [ -n "$(known rustup)" ] || refresh_lists
        [ -n "$(known rustup)" ] ||
            fail "Rust $wanted or newer is needed and this release has no rustup package: install rustup (https://rustup.rs), then run this again"
        install "Rust $wanted" rustup
        rustup=$(command -v rustup) || fail "the package rustup has no rustup"
    fi
    if ! toolchain=$(installed_toolchain "$wanted"); then
        echo "fetching Rust $wanted"
        "$rustup" toolchain install "$wanted" --profile minimal --component rustfmt,clippy >>"$log" 2>&1 ||
            fail "rustup cannot fetch Rust $wanted (see $log)"
        toolchain=$wanted
    fi
    # The programs themselves: rustup's stand-ins would ask for the pinned name again.
    for program in $programs; do
        ln -sfn "$("$rustup" which --toolchain "$toolchain" "$program")" "$bin/$program"
    done
}

# Whether the cargo on the PATH is new enough and has what a check of this repository needs.
builds() { # builds VERSION
    local wanted=$1 part
    (
        cd "$repo" || exit
        # rustup's cargo would fetch the pinned toolchain without a word.
        export RUSTUP_AUTO_INSTALL=0
        cargo --version 2>>"$log" | at_least "$wanted" || exit
        for part in clippy fmt; do cargo "$part" --version >>"$log" 2>&1 || exit; done
    )
}

# A toolchain of rustup that is there already under another name, such as `stable`: the pinned version,
# or else a newer one.
installed_toolchain() { # installed_toolchain VERSION
    local wanted=$1 name cargo version newer=''
    while read -r name _; do
        cargo=$("$rustup" which --toolchain "$name" cargo 2>>"$log") || continue
        PATH=$(dirname "$cargo"):$PATH builds "$wanted" || continue
        version=$("$cargo" --version | cut -d' ' -f2)
        if [ "$version" = "$wanted" ]; then
            echo "$name"
            return
        fi
        case $version in *-*) ;; *) newer=$name ;; esac
    done < <("$rustup" toolchain list 2>>"$log")
    [ -n "$newer" ] && echo "$newer"
}

at_least() { # at_least VERSION: reads "cargo 1.95.0 (…)"
    local version
    read -r _ version _ || return 1
    [ "$(printf '%s\n%s\n' "$1" "$version" | sort -V | head -n1)" = "$1" ]
}

# ---- main ------------------------------------------------------------------------------------------

# What an earlier run has put there is not the machine's own.
PATH=:$PATH:
# Neighbours share a colon, so one replacement would leave every second of them.
while [[ $PATH == *":$bin:"* ]]; do PATH=${PATH//":$bin:"/:}; done
PATH=${PATH:1:-1}

mkdir -p "$bin" "$root" "$images"
exec 9>"$tools/lock"
flock 9

ID='' VERSION_ID='' VERSION_CODENAME=''
# shellcheck source=/dev/null
if [ -r /etc/os-release ]; then . /etc/os-release; fi
edition="$ID $VERSION_ID $(cksum <"${BASH_SOURCE[0]}")"

case ${1:-} in
build) build_tools ;;
up) provide prometheus alertmanager ;;
deb) provide cargo_deb ;;
host) host_tools ;;
lab)
    host_tools
    provide exporters webhook haproxy cargo_deb
    release=$(default_release)
    # What is built here runs on this machine's release and newer ones.
    own=${VERSION_CODENAME:-$release}
    image "$own"
    ln -sfn "systemd-$own.tar" "$images/own.tar"
    # A newer release than this machine's, where its archive has one: packages built here are for both.
    rm -f "$images/newer.tar"
    if [ "$own" = bookworm ]; then
        image trixie
        ln -sfn systemd-trixie.tar "$images/newer.tar"
    fi
    ;;
image)
    [ -n "${2:-}" ] || fail "usage: tests/fetch-tools.sh image RELEASE"
    image "$2"
    ;;
engine)
    [ -n "${2:-}" ] || fail "usage: tests/fetch-tools.sh engine RELEASE"
    engine "$2"
    ;;
*) fail "usage: tests/fetch-tools.sh build|up|host|deb|lab|image RELEASE|engine RELEASE" ;;
esac
