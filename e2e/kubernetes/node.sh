# Makes a node of the machine it runs on: see the package's documentation.
# Arguments: name, directory for files that survive a reboot, network of services.
set -euo pipefail
name=$1 dir=$2 services=$3

controllers=(blkio cpu cpuacct cpuset devices freezer memory pids systemd)

# Below the laboratory's own control group, which is removed with it.
for c in "${controllers[@]}"; do
	g=/sys/fs/cgroup/$c/shoal-lab/$name
	# A computer that boots has none; the kubelet would look for their containers.
	[ ! -d "$g" ] || find "$g" -depth -type d -exec rmdir {} +
	mkdir -p "$g"
	if [ "$c" = cpuset ]; then
		for d in /sys/fs/cgroup/cpuset/shoal-lab "$g"; do
			cat /sys/fs/cgroup/cpuset/cpuset.cpus >"$d/cpuset.cpus"
			cat /sys/fs/cgroup/cpuset/cpuset.mems >"$d/cpuset.mems"
		done
	fi
	echo 0 >"$g/cgroup.procs"
done

# In a namespace of control groups, the root of a mount is the process's own group.
unshare -C bash -euo pipefail -c '
	mount -t sysfs sysfs /sys
	mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
	for c in "$@"; do
		mkdir "/sys/fs/cgroup/$c"
		options=$c
		[ "$c" != systemd ] || options=none,name=systemd
		mount -t cgroup -o "$options" cgroup "/sys/fs/cgroup/$c"
	done' bash "${controllers[@]}"

[ -e "$dir/upper" ] || first=yes
for d in etc var opt; do
	mkdir -p "$dir/upper/$d" "$dir/work/$d"
	mount -t overlay overlay -o "lowerdir=/$d,upperdir=$dir/upper/$d,workdir=$dir/work/$d" "/$d"
done
# Their layers are overlays themselves, and cannot lie on one.
for d in containerd kubelet; do
	mkdir -p "$dir/disk/$d" "/var/lib/$d"
	mount --bind "$dir/disk/$d" "/var/lib/$d"
done
# Nothing of this computer's own, if it is a node itself.
[ -z "${first-}" ] || rm -rf /var/lib/cni /var/lib/shoal /etc/cni /etc/containerd /etc/kubernetes

# The kubelet sets these unless they are so. They are the whole computer's.
sysctl() {
	mkdir -p "$(dirname "$dir/sysctl/$1")"
	echo "$2" >"$dir/sysctl/$1"
	mount --bind "$dir/sysctl/$1" "/proc/sys/$1"
}
sysctl vm/overcommit_memory 1
sysctl vm/panic_on_oom 0
sysctl kernel/panic 10
sysctl kernel/panic_on_oops 1
sysctl kernel/keys/root_maxkeys 1000000
sysctl kernel/keys/root_maxbytes 25000000

echo 1 >/proc/sys/net/ipv4/ip_forward
# Network policies hold between pods of one node, too.
echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables
# And they refuse each time, not once in a second.
echo 0 >/proc/sys/net/ipv4/icmp_ratelimit
# kube-proxy redirects what is for services, if it can be sent anywhere at all.
ip route replace "$services" dev eth0

# Mounts of volumes have to be seen by containerd, and by containers.
mount --make-rshared /
