#!/bin/sh
# Checks rules, their tests, and where each alert goes. PROMTOOL and AMTOOL name the two programs
# (default: those on the PATH). Needs no server, no network and no root.
set -eu
cd "$(dirname "$0")"
promtool=${PROMTOOL:-promtool}
amtool=${AMTOOL:-amtool}

"$promtool" check rules --lint=all --lint-fatal ./*.rules.yml
"$promtool" check config prometheus.yml
"$promtool" test rules ./*.test.yml
"$amtool" check-config alertmanager.yml

# route ALERT RECEIVERS LABEL=VALUE...: an alert with these labels goes to exactly these receivers.
route() {
    alert=$1 receivers=$2
    shift 2
    if ! said=$("$amtool" config routes test --config.file=alertmanager.yml \
        --verify.receivers="$receivers" "alertname=$alert" host=vps1 "$@" 2>&1); then
        printf '%s is not routed to %s:\n%s\n' "$alert" "$receivers" "$said" >&2
        exit 1
    fi
}

route HostDiskHigh evenkeel-remediator,log severity=info remediate=true remediation_rule=disk-high
route HostDiskStillHigh team severity=warning remediation_rule=disk-high
route HostDiskAlmostFull pager severity=critical remediation_rule=disk-high
route HostDiskFillingUp team severity=warning
route HostInodesHigh team severity=warning

route SystemdUnitFailed evenkeel-remediator,log severity=info remediate=true remediation_rule=unit-failed
route SystemdUnitStillFailed team severity=warning remediation_rule=unit-failed
route SystemdRestartLoop evenkeel-remediator,log severity=info remediate=true remediation_rule=unit-looping
route SystemdUnitStillLooping team severity=warning remediation_rule=unit-looping
route SystemdUnitFileDrift team severity=warning
route SystemdStaleReference evenkeel-remediator,log severity=info remediate=true remediation_rule=unit-stale-reference
route SystemdStaleReferenceLeft team severity=warning remediation_rule=unit-stale-reference

route ContainerUnhealthy evenkeel-remediator,log severity=info remediate=true remediation_rule=container-unhealthy
route ContainerStillUnhealthy team severity=warning remediation_rule=container-unhealthy
route ContainerHealthcheckBroken team severity=warning
route ContainerRestartsHigh team severity=warning
route DockerBuildCacheLarge log severity=info
route DockerDiskUsageStale team severity=warning

route HostNameUnresolved evenkeel-remediator,log severity=info remediate=true remediation_rule=hosts-alias
route HostNameStillUnresolved team severity=warning remediation_rule=hosts-alias

route RedisDown pager severity=critical
route RedisNotReady team severity=warning

route ExpectationNotMet team severity=warning
route ExpectationUnknown team severity=warning

route Watchdog deadman severity=none
route TargetDown team severity=warning
route TargetVanished team severity=warning
route CollectorFailing team severity=warning
route WebConfigReloadFailing team severity=warning
route PrometheusRuleFailures team severity=warning
route RemediationInProgress log severity=none remediation_rule=disk-high
route RemediationStuck team severity=warning
route RemediationIneffective log severity=info
route RemediationEscalated team severity=warning
route RemediationBreakerOpen log severity=info
route RemediatorDown team severity=warning
route RemediatorStateFailing team severity=warning
route RemediatorStateDegraded team severity=warning
route RemediatorStateLost team severity=warning
route RemediatorPausedLong team severity=warning
route RemediatorConfigReloadFailed team severity=warning
route RemediatorPipelineFailing team severity=warning
route RemediatorStorm team severity=warning
route RemediationDeliveryFailing team severity=warning

route FleetLost pager severity=critical
route FleetHostsGone team severity=warning
route FleetAlertsUnclaimed team severity=warning
route FleetBacklog team severity=warning
route FleetStopped pager severity=critical
route FleetPausedLong team severity=warning
route FleetRedisEvicts team severity=warning
route FleetIdentityConflict team severity=warning
route FleetLeaseLost team severity=warning
route FleetEntryPoisoned team severity=warning

# An alert of somebody else's, without a severity, reaches people and never the remediator.
route SomebodyElses team

echo "alerts: rules, tests, configuration and routes are right"
