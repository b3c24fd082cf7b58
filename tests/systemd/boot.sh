#!/usr/bin/env bash
# Boots a real systemd as PID 1 in private namespaces, runs one command on the host with its pid in $INIT, and shuts it down.
#
#   boot.sh ROOTFS COMMAND [ARG...]
#
# Needs root, debootstrap, iproute2, and a kernel with cgroup v2. The root file system is created once, with debootstrap from this
# machine's own apt source, and kept; what the guest writes stays in memory and is lost at its end. All mounts,
# processes and addresses are in the new namespaces: the machine is not changed.
set -euo pipefail
ROOTFS=$(realpath -m "$1")
shift
export ROOTFS

suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
# An HTTP source of the suite's component main, from the distribution's own file if possible; nothing if there is none.
apt_source() {
    local file
    for file in /etc/apt/sources.list.d/{debian,ubuntu}.sources /etc/apt/sources.list \
        /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list; do
        if [ -f "$file" ]; then
            cat "$file"
            echo
        fi
    done | awk -v s="$suite" '
        function has(list, word, words, n, i) {
            n = split(list, words)
            for (i = 1; i <= n; i++) if (words[i] == word) return 1
            return 0
        }
        function stanza(uris, n, i) {
            n = split(u, uris)
            for (i = 1; i <= n && !found; i++)
                if (uris[i] ~ /^https?:/ && has(suites, s) && has(components, "main") && has(types, "deb")) found = uris[i]
            u = suites = components = types = ""
        }
        /^#/ { next }
        /^[[:space:]]*$/ { stanza(); next }
        $1 == "Types:" { types = $0 }
        $1 == "URIs:" { u = $0 }
        $1 == "Suites:" { suites = $0 }
        $1 == "Components:" { components = $0 }
        $1 == "deb" && !found {
            for (i = 2; i < NF; i++)
                if ($i ~ /^https?:/ && $(i + 1) == s) for (j = i + 2; j <= NF; j++) if ($j == "main") found = $i
        }
        END { stanza(); if (found) print found }
    '
}
if [ ! -e "$ROOTFS/.complete" ]; then
    rm -rf --one-file-system "$ROOTFS"
    mkdir -p "$(dirname "$ROOTFS")"
    source=$(apt_source)
    # In a separate mount namespace: debootstrap's mounts disappear with it, even if it is killed.
    unshare --mount --propagation private \
        debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,iproute2,procps \
        "$suite" "$ROOTFS" ${source:+"$source"} >"$ROOTFS.log" 2>&1 || { tail -n 20 "$ROOTFS.log" >&2; exit 1; }
    ln -sf /dev/null "$ROOTFS/etc/systemd/system/console-getty.service"
    touch "$ROOTFS/.complete"
fi

setup='
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o "lowerdir=$ROOTFS,upperdir=/mnt/upper,workdir=/mnt/work" overlay /mnt/root
root=/mnt/root
mount -t tmpfs tmpfs "$root/run"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=755 cgroup "$root/sys/fs/cgroup"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 dev "$root/dev"
for d in null zero full random urandom tty; do touch "$root/dev/$d"; mount --bind "/dev/$d" "$root/dev/$d"; done
mkdir -p "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts "$root/dev/pts"
ln -sf pts/ptmx "$root/dev/ptmx"
ln -sf /proc/self/fd "$root/dev/fd"
ln -sf /dev/null "$root/dev/console"
ip link set lo up
cd "$root"
pivot_root . mnt
umount -l /mnt
# In a container, systemd expects this to be set up from outside; without it no service gets its credentials.
mount --make-rshared /
export container=other
exec /sbin/init --log-target=journal systemd.unified_cgroup_hierarchy=1
'
boot_log=$(mktemp)
unshare --pid --mount --net --uts --ipc --cgroup --fork --kill-child bash -c "$setup" </dev/null >"$boot_log" 2>&1 &
outer=$!
# --kill-child also kills init.
trap 'kill -KILL $outer 2>/dev/null || true; wait $outer 2>/dev/null || true; rm -f "$boot_log" "$boot_log.state"' EXIT

# The state according to the guest's own systemd. Until the child of unshare has become that systemd, it still has this machine's
# root, and systemctl there would query this machine's systemd.
state() {
    INIT=$(pgrep -P "$outer" | head -n 1 || true)
    [ -n "$INIT" ] && [ "$(cat "/proc/$INIT/comm" 2>/dev/null)" = systemd ] || return 0
    nsenter -t "$INIT" -a systemctl is-system-running 2>/dev/null || true
}
INIT=
SECONDS=0
until state >"$boot_log.state" && grep -E 'running|degraded' "$boot_log.state" >/dev/null; do
    if ! kill -0 "$outer" 2>/dev/null || [ $SECONDS -ge 120 ]; then
        echo "boot.sh: the guest has not started after $SECONDS s; its state: $(cat "$boot_log.state")" >&2
        cat "$boot_log" >&2
        [ -z "$INIT" ] || nsenter -t "$INIT" -a systemctl list-jobs --no-pager >&2 || true
        exit 1
    fi
    # There is no notification to another namespace that the system has started.
    sleep 0.2
done
export INIT
"$@"
