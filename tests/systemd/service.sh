#!/usr/bin/env bash
# Tests the package under a real systemd: service.sh PACKAGE.deb RTSPRELAY-BENCH, run by boot.sh, with the guest's pid in $INIT.
set -Eeuo pipefail
trap 'echo "FAILED: line $LINENO: $BASH_COMMAND" >&2' ERR
# No `grep -q` after a pipe here: it exits at the first match, and the writer is then killed by SIGPIPE.
here=$(dirname "$0")
deb=$1 bench=$2
probed=$(mktemp)
trap 'rm -f "$probed"' EXIT

guest() { nsenter -t "$INIT" -a --wd=/ "$@"; }
near() { nsenter -t "$INIT" -n "$@"; } # the guest's network, this machine's programs
show() { guest systemctl show -P "$1" rtsprelay.service; }
journal() { guest journalctl -u rtsprelay.service --no-pager -o cat "$@"; }
step() { echo "--- $SECONDS s: $*"; }
fail() {
    echo "FAILED: $*" >&2
    [ ! -s "$probed" ] || { echo "ffprobe said:"; cat "$probed"; } >&2
    guest systemctl status --no-pager -l rtsprelay.service >&2 || true
    guest journalctl -n 25 --no-pager >&2 || true
    exit 1
}
# within SECONDS COMMAND...: until it succeeds.
within() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $end ] || fail "not in time: $*"
        sleep 0.1
    done
}
plays() { # STREAM [USER:PASSWORD@] [PORT]
    near timeout 20 ffprobe -v error -rtsp_transport tcp -show_entries stream=codec_name -of csv=p=0 "rtsp://${2:-}127.0.0.1:${3:-8554}/$1" 2>"$probed" | grep h264 >/dev/null
}
says() { journal | grep -F -- "$1" >/dev/null; }
# The main process, as this machine numbers it.
main_process() {
    local inner status
    inner=$(show MainPID)
    for status in /proc/[0-9]*/status; do
        # Other processes may end in the meantime.
        if grep -qsE "^NSpid:.*[[:space:]]$inner\$" "$status" && grep -qs '^Name:[[:space:]]*rtsprelay$' "$status"; then
            cut -d/ -f3 <<<"$status"
        fi
    done
}
# Players and pages connect all the time while a command in the guest ends the main process.
under_connections() {
    near /usr/bin/python3 "$here/connects.py" "$(main_process)" rtsp://127.0.0.1:8554 http://127.0.0.1:8580 -- \
        nsenter -t "$INIT" -a --wd=/ "$@" || fail "not every connection was answered: $*"
}
has_clients() { # NUMBER
    near /usr/bin/python3 - "$1" <<'PYTHON'
import sys, urllib.request
page = urllib.request.urlopen("http://127.0.0.1:8580/metrics").read().decode()
sys.exit(sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith("rtsprelay_clients{")) < int(sys.argv[1]))
PYTHON
}
refuses() { ! near timeout 20 bash -c "exec 3<>/dev/tcp/127.0.0.1/$1" 2>/dev/null; }
kept() { show NFileDescriptorStore; }
configure() { # TEXT OF STREAMS... [head in $head]
    {
        printf 'listen = ["127.0.0.1:8554"]\nhttp = "127.0.0.1:8580"\n%b' "${head:-}"
        for name in "$@"; do printf '[[stream]]\nname = "%s"\nsource = "test"\n' "$name"; done
    } >"/proc/$INIT/root/etc/rtsprelay/rtsprelay.toml"
}

step "install"
# On a fast machine it is started more often within 10 s than systemd allows by default.
mkdir -p "/proc/$INIT/root/run/systemd/system/rtsprelay.service.d"
printf '[Unit]\nStartLimitIntervalSec=0\n' >"/proc/$INIT/root/run/systemd/system/rtsprelay.service.d/starts.conf"
cp "$deb" "/proc/$INIT/root/root/rtsprelay.deb"
guest dpkg -i /root/rtsprelay.deb >/dev/null
for file in /usr/bin/rtsprelay /usr/bin/rtsprelay-view /usr/share/man/man1/rtsprelay.1.gz /usr/share/man/man1/rtsprelay-view.1.gz /usr/share/bash-completion/completions/rtsprelay \
    /usr/share/bash-completion/completions/rtsprelay-view /usr/share/zsh/vendor-completions/_rtsprelay-view /usr/share/doc/rtsprelay/LICENSE-MIT; do
    [ -e "/proc/$INIT/root$file" ] || fail "$file is not in the package"
done
guest rtsprelay check
guest systemd-analyze verify --man=no /lib/systemd/system/rtsprelay.service /lib/systemd/system/rtsprelay.socket || fail "the units have faults"

step "start"
configure one
guest systemctl start rtsprelay || fail "it does not start"
[ "$(show ActiveState)" = active ] || fail "not active after READY"
# The service is ready when it listens; until its camera has answered, it answers 503.
within 10 bash -c "nsenter -t $INIT -a systemctl show -P StatusText rtsprelay | grep '1 of 1 streams live' >/dev/null"
plays one || fail "the stream does not play"
echo "status: $(show StatusText)"
echo "user: $(guest ps -o user= -p "$(show MainPID)"), $(journal | grep -oE 'io="[a-z_]+"' | tail -n 1)"
if [ "$(cat /proc/sys/kernel/io_uring_disabled 2>/dev/null || echo 0)" = 0 ]; then
    says 'io="io_uring"' || fail "the unit's sandbox keeps io_uring from it"
fi

step "an upgrade that 50 players do not notice"
before=$(show MainPID)
report=$(mktemp)
near timeout 60 "$bench" load --json --clients=50 --warmup=0 --seconds=8 --url=rtsp://127.0.0.1:8554/one >"$report" &
players=$!
within 20 has_clients 50
guest dpkg -i /root/rtsprelay.deb | tail -n 3
[ "$(show MainPID)" != "$before" ] || fail "the version before still runs"
[ "$(show NRestarts)" = 0 ] || fail "the upgrade killed it"
journal | grep 'handed over to the new program.* clients=5[0-9]' || fail "it was restarted, or the players had left"
wait $players || fail "the players: $(cat "$report")"
/usr/bin/python3 - "$report" <<'PYTHON' || fail "players noticed: $(cat "$report")"
import json, sys
seen = json.load(open(sys.argv[1]))["normal"]
print(seen["playing"], "players,", seen["frames_whole"], "frames, none missing, p99", seen["latency_us"]["p99"], "us")
sys.exit(seen["playing"] != 50 or seen["closed"] or seen["frames_missing"] or seen["sequence_gaps"] or seen["timeline_restarts"])
PYTHON
rm -f "$report"
upgraded=$SECONDS upgraded_to=$(show MainPID)

step "reload with a second stream, under a player of the first"
frames=$(mktemp)
near timeout 60 ffmpeg -v error -rtsp_transport tcp -i rtsp://127.0.0.1:8554/one -map 0:v -c copy -t 4 -f framecrc - >"$frames" &
player=$!
within 20 test -s "$frames"
configure one two
guest systemctl reload rtsprelay
within 10 plays two
wait $player || fail "the player of the first stream was cut off"
# Timestamps at 90 kHz, 3,000 per frame; how the player places the very first ones does not matter.
awk -F, '!/^#/ { if (n++ > 1 && $2 - last > 4500) { print "gap at", $2, "after", last; bad = 1 }; last = $2 }
    END { print n, "frames, every one"; exit bad || n < 60 }' "$frames" || fail "the player of the first stream lost frames"
rm -f "$frames"

step "a bad file is refused"
configure one
printf '[[stream]]\nname = "x"\nsorce = "test"\n' >>"/proc/$INIT/root/etc/rtsprelay/rtsprelay.toml"
guest systemctl reload rtsprelay || true
within 10 says "the relay keeps the current one"
journal -p err | grep 'did you mean stream.source' >/dev/null || fail "the fault is not in the journal as an error"
plays two || fail "the old configuration does not stay"

step "what the journal tells"
journal | grep 'p99_us=' >/dev/null && fail "the journal is filled with reports for programs"
guest systemctl kill --kill-who=main -s USR1 rtsprelay
within 10 says 'ran for '
journal | grep -oE 'ran for .*2 streams: 2 live.*p99 [0-9.]+ .*s, max .*' || fail "no summary in the journal"

# Longer than WatchdogSec: systemd takes the new process's signs of life.
while [ $SECONDS -lt $((upgraded + 15)) ]; do sleep 1; done
[ "$(show MainPID)" = "$upgraded_to" ] || fail "the new process of the upgrade was ended"

step "an upgrade with another unit, which only a restart can apply"
configure one
echo "# changed" >>"/proc/$INIT/root/lib/systemd/system/rtsprelay.service"
handed_over() { journal | grep -c "handed over to the new program" || true; }
before=$(show MainPID) handed=$(handed_over)
under_connections dpkg -i /root/rtsprelay.deb
[ "$(show MainPID)" != "$before" ] || fail "the version before still runs"
[ "$(handed_over)" = "$handed" ] || fail "a process of the new version has the sandbox of the old unit"
[ "$(show NRestarts)" = 0 ] || fail "the upgrade killed it"
within 10 plays one

step "a password from a credential"
printf 'se:c ret\n' >"/proc/$INIT/root/etc/viewer.secret"
chmod 600 "/proc/$INIT/root/etc/viewer.secret"
printf '[Service]\nLoadCredential=viewer:/etc/viewer.secret\n' >"/proc/$INIT/root/run/systemd/system/rtsprelay.service.d/test.conf"
guest systemctl daemon-reload
configure one
printf '[[user]]\nname = "viewer"\npassword_credential = "viewer"\n' >>"/proc/$INIT/root/etc/rtsprelay/rtsprelay.toml"
guest systemctl restart rtsprelay
within 10 plays one "viewer:se%3Ac%20ret@"
plays one && fail "the stream plays without the password"
plays one "viewer:guess@" && fail "the stream plays with another password"
journal | grep -F 'se:c ret' >/dev/null && fail "the password is in the journal"
rm "/proc/$INIT/root/etc/viewer.secret"

step "the watchdog"
printf '[Service]\nWatchdogSec=2s\n' >"/proc/$INIT/root/run/systemd/system/rtsprelay.service.d/test.conf"
guest systemctl daemon-reload
configure one
guest systemctl restart rtsprelay
pid=$(main_process)
[ -n "$pid" ] || fail "the relay's process is not found"
hung_at=$SECONDS
/usr/bin/python3 "$here/stop_thread.py" "$pid" shard-0 &
within 30 bash -c "[ \"\$(nsenter -t $INIT -a systemctl show -P NRestarts rtsprelay)\" -ge 1 ]"
within 20 plays one
within 10 says "shards do not respond"
guest journalctl --no-pager -o cat -u rtsprelay | grep -i 'watchdog timeout' | tail -n 1
echo "restarted and playing $((SECONDS - hung_at)) s after shard 0 hung"
rm "/proc/$INIT/root/run/systemd/system/rtsprelay.service.d/test.conf"
guest systemctl daemon-reload

step "a crash and a restart refuse nobody"
configure one
guest systemctl restart rtsprelay
[ "$(kept)" = 2 ] || fail "systemd keeps $(kept) sockets"
# With RestartSec=1s nobody listens for a second, unless systemd does.
under_connections systemctl kill --kill-who=main -s KILL rtsprelay
under_connections systemctl kill --kill-who=main -s ABRT rtsprelay # what the watchdog sends
under_connections systemctl restart rtsprelay
[ "$(kept)" = 2 ] || fail "systemd keeps $(kept) sockets"
within 20 plays one

step "an upgrade with a client over TLS: a crash and a stop end its carrier"
secrets="/proc/$INIT/root/etc/rtsprelay"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 9 -subj /CN=localhost -keyout "$secrets/key.pem" -out "$secrets/certificate.pem" 2>/dev/null
guest chgrp rtsprelay-config /etc/rtsprelay/key.pem
chmod 640 "$secrets/key.pem"
head='listen_tls = ["127.0.0.1:8322"]\ntls_certificate = "/etc/rtsprelay/certificate.pem"\ntls_key = "/etc/rtsprelay/key.pem"\n' configure one
guest systemctl restart rtsprelay
within 20 plays one
# The filter of system calls must allow it; the names have no spaces.
handshakes=$(awk '$2 == "(tls-handshakes)" { print $19 }' "/proc/$(main_process)/task/"*/stat)
[ "$handshakes" = 5 ] || fail "handshakes have nice value $handshakes and do not give way to media"
frames=$(mktemp)
carried=$(mktemp)
no_carrier() { ! guest pgrep -x rtsprelay-carry >/dev/null; }
played() { wc -l <"$frames"; }
plays_on() { [ "$(played)" -gt "$1" ]; }
# A player over TLS, and the relay upgraded under it.
carry() {
    : >"$frames"
    near timeout 120 ffmpeg -v quiet -rtsp_transport tcp -i rtsps://127.0.0.1:8322/one -map 0:v -c copy -f framecrc -flush_packets 1 - >"$frames" &
    player=$!
    within 30 plays_on 30
    before=$(show MainPID)
    guest rtsprelay upgrade --pid "$before" >"$carried" || fail "it is not upgraded"
    grep '1 of them use TLS' "$carried" || fail "the player is not carried"
    within 10 plays_on $(($(played) + 30))
    within 10 bash -c "[ \"\$(nsenter -t $INIT -a pgrep -x rtsprelay-carry)\" = '$before' ]"
    [ "$(show MainPID)" != "$before" ] || fail "the carrier is the main process"
}
carry
restarts=$(show NRestarts)
began=$(date +%s%N)
guest systemctl kill --kill-who=main -s KILL rtsprelay
restarted() { [ "$(show NRestarts)" -gt "$restarts" ] && [ "$(show ActiveState)" = active ]; }
within 20 restarted
echo "restarted $((($(date +%s%N) - began) / 1000000)) ms after a crash beside a carrier (RestartSec=1s)"
no_carrier || fail "a carrier has outlived the relay"
wait $player || true
within 20 plays one
carry
began=$(date +%s%N)
guest systemctl stop rtsprelay
echo "stopped with a carrier in $((($(date +%s%N) - began) / 1000000)) ms: $(show Result)"
no_carrier || fail "a carrier has outlived the service"
[ "$(show Result)" = success ] || fail "the stop was not clean"
wait $player || true
rm -f "$frames" "$carried" "$secrets/key.pem" "$secrets/certificate.pem"
configure one
guest systemctl start rtsprelay

step "the store follows the configuration"
file=/proc/$INIT/root/etc/rtsprelay/rtsprelay.toml
sed -i 's/127.0.0.1:8554/0.0.0.0:8554/' "$file"
guest systemctl restart rtsprelay || fail "the socket at the address before is in the way"
within 20 plays one
sed -i 's/0.0.0.0:8554/127.0.0.1:8555/' "$file"
guest systemctl reload rtsprelay
within 10 says "listen changed in the configuration; restart the relay to apply it"
plays one || fail "a reload closed a listener that takes a restart"
guest systemctl restart rtsprelay
within 20 plays one "" 8555
refuses 8554 || fail "a port that is no longer configured accepts connections"
[ "$(kept)" = 2 ] || fail "systemd keeps $(kept) sockets"

step "nobody waits for a relay that is stopped, or fails for good"
configure one
guest systemctl restart rtsprelay
guest systemctl stop rtsprelay
refuses 8554 || fail "a port of a stopped relay accepts connections"
[ "$(kept)" = 0 ] || fail "systemd keeps $(kept) sockets of a stopped relay"
printf '[Unit]\nStartLimitIntervalSec=1h\nStartLimitBurst=2\n' >"/proc/$INIT/root/run/systemd/system/rtsprelay.service.d/test.conf"
guest systemctl daemon-reload
guest systemctl start rtsprelay
printf 'sorce = "test"\n' >>"$file"
guest systemctl kill --kill-who=main -s KILL rtsprelay
near timeout 60 bash -c 'exec 3<>/dev/tcp/127.0.0.1/8554 && printf "OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n" >&3 && cat <&3' 2>"$probed" && code=0 || code=$?
echo "the connection that waited ended with $code: $(cat "$probed")"
[ $code != 124 ] || fail "a connection waits for a relay that has failed"
grep 'refused' "$probed" && fail "the connection after the crash did not wait"
within 10 bash -c "nsenter -t $INIT -a systemctl is-failed rtsprelay >/dev/null"
refuses 8554 || fail "a port of a failed relay accepts connections"
[ "$(kept)" = 0 ] || fail "systemd keeps $(kept) sockets of a failed relay"
rm "/proc/$INIT/root/run/systemd/system/rtsprelay.service.d/test.conf"
guest systemctl daemon-reload
guest systemctl reset-failed rtsprelay

step "syslog, and its restart"
head='[report]\nsyslog = true\nevery = "1s"\n' configure one
guest systemctl restart rtsprelay
# The lines received through /dev/log, including the reports.
by_syslog() { guest journalctl --no-pager -o cat _TRANSPORT=syslog SYSLOG_IDENTIFIER=rtsprelay SYSLOG_FACILITY=3 | grep -c ' client.*; in \|listening' || true; }
within 10 bash -c "nsenter -t $INIT -a journalctl --no-pager -o cat _TRANSPORT=syslog SYSLOG_IDENTIFIER=rtsprelay SYSLOG_FACILITY=3 | grep ' client.*; in ' >/dev/null"
guest systemctl restart systemd-journald
before=$(by_syslog)
within 20 plays one
more() { [ "$(by_syslog)" -gt "$before" ]; }
plays one
within 15 more
[ "$(show ActiveState)" = active ] || fail "it did not survive"

step "stop"
began=$(date +%s%N)
guest systemctl stop rtsprelay
took=$((($(date +%s%N) - began) / 1000000))
echo "stopped in $took ms: $(show Result)"
# The relay has 2 s; the rest is for systemd and a busy machine.
[ $took -lt 5000 ] || fail "the stop took $took ms"
[ "$(show Result)" = success ] || fail "the stop was not clean"

step "socket activation, on a port below 1024"
mkdir -p "/proc/$INIT/root/run/systemd/system/rtsprelay.socket.d"
printf '[Socket]\nListenStream=\nListenStream=0.0.0.0:554\n' >"/proc/$INIT/root/run/systemd/system/rtsprelay.socket.d/test.conf"
guest systemctl daemon-reload
guest systemctl start rtsprelay.socket
within 20 plays one "" 554
[ "$(show ActiveState)" = active ] || fail "the connection did not start it"
refused=0
guest systemctl restart --no-block rtsprelay
for _ in $(seq 100); do
    near bash -c 'exec 3<>/dev/tcp/127.0.0.1/554' 2>/dev/null || refused=$((refused + 1))
    sleep 0.01
done
echo "$refused of 100 connections refused during a restart"
[ $refused = 0 ] || fail "connections were refused during a restart"
within 20 plays one "" 554

step "the sandbox"
guest systemd-analyze security --no-pager rtsprelay.service | tail -n 1
guest systemd-analyze security --no-pager --threshold=15 rtsprelay.service >/dev/null || fail "the exposure is over 1.5"

step "purge"
guest systemctl enable --quiet rtsprelay.service rtsprelay.socket
guest dpkg --purge rtsprelay >/dev/null 2>&1
rm -rf "/proc/$INIT/root/run/systemd/system/rtsprelay."*
left=$(guest find / -xdev -name '*rtsprelay*' ! -name rtsprelay.deb -not -path '/proc/*' -not -path '/run/*' 2>/dev/null || true)
[ -z "$left" ] || fail "left behind: $left"
guest getent group rtsprelay-config && fail "the group stays" || true
guest systemctl is-active rtsprelay.service rtsprelay.socket && fail "still active" || true
echo "nothing is left behind"
