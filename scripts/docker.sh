#!/usr/bin/env bash
# Makes sure that a Docker engine answers: installs the distribution's when there is none, starts it when it is down.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

last=
# An engine that hangs is not one that answers.
answers() { last=$(bounded 10 docker version --format '{{.Server.Version}}' 2>&1 </dev/null | tail -n 1); }

if have docker && answers; then
    exit 0
fi

case ${DOCKER_HOST:-} in
'' | unix:///var/run/docker.sock | unix:///run/docker.sock) ;;
*) ! have docker || die "DOCKER_HOST is $DOCKER_HOST, and no Docker engine answers there:" "$last" ;;
esac

case $last in
*'permission denied'*)
    die "this user may not talk to the Docker engine:" "$last" \
        "Run: sudo usermod -aG docker $(id -un), log in again, then run the same command again."
    ;;
esac

# Docker Desktop and the like bring no dockerd that we could start.
if have docker && ! have dockerd && ! has_apt; then
    die "the Docker engine is not running:" "$last" "Start it, then run the same command again."
fi

if ! have dockerd; then
    apt_install docker.io iptables ca-certificates
    hash -r
fi
# From Debian 13 on the client is a package of its own.
have docker || apt_install docker-cli

answers && exit 0
if ! is_root; then
    die "the Docker engine is not running:" "$last" "Run: sudo systemctl start docker (or sudo dockerd)"
fi
have iptables || apt_install iptables

engine=
if [ -d /run/systemd/system ]; then
    log="journalctl -u docker"
    say "starting the Docker engine (systemctl start docker)"
    systemctl start docker >&2 || true
else
    log=$CACHE/dockerd.log
    say "starting the Docker engine (log: $log)"
    # A session of its own: the engine outlives this script and the terminal it was started from.
    setsid dockerd >"$log" 2>&1 </dev/null &
    engine=$!
fi

settled() { answers || { [ -n "$engine" ] && ! kill -0 "$engine" 2>/dev/null; }; }
if ! wait_for 60 settled || ! answers; then
    [ -z "$engine" ] || tail -n 15 "$log" >&2
    die "the Docker engine does not answer:" "$last" "Its log: $log"
fi
say "Docker engine $last is up"
