#!/usr/bin/env bash
#
# make test: runs every part, says how long each took, and closes with `N passed, N failed`.
#
# A part is a target of the Makefile, so that each can be run by itself. Where it runs tests they are
# counted, otherwise the part is one. What was printed stays in .run/logs/.

set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

logs=.run/logs
passed=0 failed=0 table=
trap 'kill "${beside_id:-}" 2>/dev/null; exit 130' INT TERM

# The tests that a part's log reports, as "PASSED FAILED": the closing lines of nextest, of cargo test
# and of the lab. Colours are taken off first.
counts() {
    sed 's/\x1b\[[0-9;]*m//g' "$1" | awk '
        /^ *Summary \[/ {
            for (i = 2; i <= NF; i++) {
                if ($i ~ /^passed/) good += $(i - 1)
                if ($i ~ /^(failed|timed)/) bad += $(i - 1)
            }
        }
        /^test result: / {
            for (i = 2; i <= NF; i++) {
                if ($i ~ /^passed/) good += $(i - 1)
                if ($i ~ /^failed/) bad += $(i - 1)
            }
        }
        END { print good + 0, bad + 0 }'
}

# part NAME TARGET WHAT: fails when the part does.
part() {
    local name=$1 start=$SECONDS
    printf '\n==== %s: %s\n' "$name" "$3"
    make "$2" 2>&1 | tee "$logs/$name.log"
    count "$name" "${PIPESTATUS[0]}" $((SECONDS - start)) "$3"
}

# beside NAME TARGET: begins a part beside what comes next; `joined NAME WHAT` waits for its end.
beside() {
    local start=$SECONDS status=0
    {
        make "$2" >"$logs/$1.log" 2>&1 || status=$?
        echo "$status $((SECONDS - start))" >"$logs/$1.end"
    } &
    beside_id=$!
}

joined() {
    local status seconds
    wait "$beside_id"
    read -r status seconds <"$logs/$1.end"
    printf '\n==== %s: %s\n' "$1" "$2"
    cat "$logs/$1.log"
    count "$1" "$status" "$seconds" "$2"
}

# count NAME STATUS SECONDS WHAT: adds a part that has ended to the table.
count() {
    local name=$1 status=$2 good bad log=$logs/$1.log
    read -r good bad < <(counts "$log")
    # A part without tests counts as one, and one that fails has failed whatever it counted.
    if [ "$status" = 0 ] && [ $((good + bad)) = 0 ]; then good=1; fi
    if [ "$status" != 0 ] && [ "$bad" = 0 ]; then bad=1; fi
    passed=$((passed + good)) failed=$((failed + bad))
    table+=$(printf '%-8s %5d s %6d passed %4d failed   %s' "$name" "$3" "$good" "$bad" "$4")$'\n'
    [ "$bad" = 0 ]
}

finish() {
    printf '\n%s%-8s %5d s\n\n%d passed, %d failed\n' "$table" all "$SECONDS" "$passed" "$failed"
    [ "$failed" = 0 ] && exit 0
    exit 1
}

mkdir -p "$logs"
# Without tools or binaries nothing that follows would say anything.
part tools tools "what it takes is there, or is fetched" || finish
part build build "binaries and tests are built" || finish
part format format "the sources are formatted"
part clippy clippy "no warnings"
part unit unit "unit and in-process tests"
part fleet simulation "fleets of 50 and 10,000 hosts, on a real Redis"
part alerts alerts "promtool and amtool: rules, their tests, configurations, routes"
# Computes at the lowest priority while the lab mostly waits.
beside fuzz fuzz
part lab lab-test "real systemd, Docker, Redis, Prometheus and Alertmanager"
joined fuzz "what nobody expects, for every parser of foreign input and the whole exporter"
finish
