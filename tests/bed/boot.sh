#!/bin/sh
# Boots a host, again and again while it asks for a reboot. box.py starts this in a mount and a network namespace of its own.
#   boot.sh NAME BASE PLACE     NAME: of the host; BASE: the tree, read-only; PLACE: its upper, work and root folders
set -eu
name=$1 base=$2 place=$3
here=/sys/fs/cgroup

if [ "${4:-}" != inside ]; then
  # A control group of its own in cgroup v2, also where this machine itself is on v1.
  mount -t cgroup2 none $here
  mkdir -p "$here/$name"
  echo $$ >"$here/$name/cgroup.procs"
  read -r _ # box.py has connected the network; nobody there any more: end
  exec unshare --cgroup --pid --fork --kill-child --mount-proc sh "$0" "$@" inside
fi

umount $here
mount -t cgroup2 none $here # once more: now its root is the host's own group
mount -t overlay overlay -o "lowerdir=$base,upperdir=$place/upper,workdir=$place/work" "$place/root"
export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
export SYSTEMD_NSPAWN_API_VFS_WRITABLE=network # sysctls of its own network namespace, no others
again=133 # how systemd-nspawn says that the host rebooted
while [ $again = 133 ]; do
  again=0
  systemd-nspawn --quiet --boot --keep-unit --register=no --machine="$name" --directory="$place/root" \
    --network-namespace-path=/proc/self/ns/net --capability=CAP_NET_ADMIN --system-call-filter='@keyring bpf' \
    --resolv-conf=off --link-journal=no --console=pipe </dev/null || again=$?
done
