// Package kubernetes is a real Kubernetes cluster in the laboratory, on one
// machine without Docker: etcd, the API server, controller manager, scheduler and
// CoreDNS on a machine of their own, and nodes with containerd, kubelet and
// kube-proxy, all of them the released programs, built from their modules. The
// tests of the Helm chart stand on it.
//
//	  registry        control               n1 … nN
//	┌──────────┐  ┌──────────────┐  ┌─────────────────────┐
//	│ registry │  │ etcd, API    │  │ containerd, kubelet │
//	│          │  │ CoreDNS, ... │  │ kube-proxy, pods    │
//	└────┬─────┘  └──────┬───────┘  └──────────┬──────────┘
//	  ───┴────────────── bridge ───────────────┴───   10.77.0.0/16
//
// # A node
//
// A node is a machine of package lab with more of a computer of its own: /etc,
// /var and /opt are overlays whose upper layers survive a reboot of the node, /run
// and /sys are fresh, and its control groups are below one of its own, seen as the
// root ones. So all paths are those of any node, and a chart runs with its defaults.
// Sysctls that the kubelet insists on have the values it wants, in files laid over
// the computer's.
//
// Pods have the addresses 10.244.<node>.x on a bridge of the node, with static
// routes between nodes and the CNI plugins bridge and portmap. kube-router enforces
// network policies, and does nothing else.
//
// # What it needs
//
// Linux with control groups v1, root, and the Debian packages runc,
// containernetworking-plugins, ipset, iptables and nftables. The first build takes
// minutes; it is kept in the user's cache.
package kubernetes
