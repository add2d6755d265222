package hosts

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Layout is where a distribution of Kubernetes keeps containerd's
// configuration. docs/distributions has a page for each.
type Layout struct {
	Name string
	// Config is the file in which config_path stands, or the one to add it to.
	Config string
	// Hosts is the directory that config_path names, or should name.
	Hosts string
	// sign exists on the nodes of this distribution, and no others.
	sign string
}

// Layouts are those that are known. The last one is that of containerd itself,
// with which EKS, AKS, kubeadm and kind agree.
func Layouts() []Layout {
	rancher := func(name string) Layout {
		dir := "/var/lib/rancher/" + name + "/agent/etc/containerd"
		return Layout{name, dir + "/config.toml", dir + "/certs.d", dir}
	}
	return []Layout{
		rancher("k3s"),
		rancher("rke2"),
		{"k0s", "/etc/k0s/containerd.d/shoal.toml", "/etc/k0s/containerd.d/certs.d", "/etc/k0s/containerd.d"},
		{"talos", "/etc/cri/conf.d/cri.toml", "/etc/cri/conf.d/hosts", "/etc/cri/conf.d"},
		{"gke", "/etc/containerd/config.toml", "/etc/containerd/hosts.d", "/etc/containerd/hosts.d"},
		{"containerd", "/etc/containerd/config.toml", "/etc/containerd/certs.d", "/etc/containerd"},
	}
}

// Find tells the layout of the node whose file system is at root.
func Find(root string) (Layout, error) {
	layouts := Layouts()
	general := layouts[len(layouts)-1]
	var found []Layout
	for _, l := range layouts[:len(layouts)-1] {
		if _, err := os.Stat(filepath.Join(root, l.sign)); err == nil {
			found = append(found, l)
		}
	}
	switch len(found) {
	case 0:
		return general, nil
	case 1:
		return found[0], nil
	}
	var names []string
	for _, l := range found {
		names = append(names, l.Name+" ("+l.Hosts+")")
	}
	return Layout{}, fmt.Errorf("find containerd's configuration: there are signs of %s", strings.Join(names, " and "))
}
