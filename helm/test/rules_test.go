package chart

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
)

// TestRules: what holds whatever the values are.
func TestRules(t *testing.T) {
	for name, args := range valuesFiles(t) {
		t.Run(name, func(t *testing.T) {
			all := render(t, args...)
			names := map[string]bool{}
			for _, o := range all {
				id := o.kind + " " + o.GetName()
				if names[id] {
					t.Errorf("%s stands there twice", id)
				}
				names[id] = true
				if o.GetNamespace() != namespace {
					t.Errorf("%s: namespace %q", id, o.GetNamespace())
				}
				if o.GetLabels()["app.kubernetes.io/instance"] != release {
					t.Errorf("%s: labels %v", id, o.GetLabels())
				}
				if o.pod != nil {
					for _, mistake := range judge(o) {
						t.Errorf("%s: %s", id, mistake)
					}
				}
				if d, ok := o.value.(*apps.DaemonSet); ok {
					for k, v := range d.Spec.Selector.MatchLabels {
						if d.Spec.Template.Labels[k] != v {
							t.Errorf("%s: selects %s=%s, which its pods have not", id, k, v)
						}
					}
				}
			}
		})
	}
}

// judge says what is wrong with pods.
func judge(o object) (mistakes []string) {
	bad := func(format string, a ...any) { mistakes = append(mistakes, fmt.Sprintf(format, a...)) }
	p := o.pod
	if token := p.AutomountServiceAccountToken; token == nil || *token != (o.kind == "Job") {
		bad("only the waiting job needs a token")
	}
	if p.HostPID || p.HostIPC {
		bad("lives in the node's namespaces")
	}
	if p.EnableServiceLinks == nil || *p.EnableServiceLinks {
		bad("services would set SHOAL_ variables")
	}
	if p.SecurityContext == nil || p.SecurityContext.SeccompProfile == nil || p.SecurityContext.SeccompProfile.Type != core.SeccompProfileTypeRuntimeDefault {
		bad("no seccomp profile")
	}
	volumes := map[string]core.Volume{}
	for _, v := range p.Volumes {
		volumes[v.Name] = v
	}
	used := map[string]bool{}
	for _, c := range slices.Concat(p.InitContainers, p.Containers) {
		s := c.SecurityContext
		if s == nil || s.Capabilities == nil || !slices.Equal(s.Capabilities.Drop, []core.Capability{"ALL"}) || len(s.Capabilities.Add) > 0 {
			bad("%s has capabilities", c.Name)
		}
		if s == nil || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || s.Privileged != nil {
			bad("%s: %+v", c.Name, s)
		}
		if len(c.Command) > 0 || len(c.Args) == 0 {
			bad("%s: the image has one program and no shell: command %q, args %q", c.Name, c.Command, c.Args)
		}
		if c.Resources.Limits.Memory().IsZero() && c.Resources.Requests.Memory().IsZero() && o.kind != "Pod" {
			bad("%s says nothing of its memory", c.Name)
		}
		paths := map[string]bool{}
		for _, m := range c.VolumeMounts {
			v, ok := volumes[m.Name]
			if !ok {
				bad("%s mounts %s, which is no volume", c.Name, m.Name)
			}
			used[m.Name] = true
			if paths[m.MountPath] {
				bad("%s mounts two volumes at %s", c.Name, m.MountPath)
			}
			paths[m.MountPath] = true
			if v.HostPath == nil {
				continue
			}
			if v.HostPath.Path != m.MountPath {
				bad("%s: %s of the node is at %s", c.Name, v.HostPath.Path, m.MountPath)
			}
			if path.Clean(m.MountPath) == "/" {
				bad("%s mounts the root of the node", c.Name)
			}
			if writes := slices.Contains([]string{"configure", "watch", "unconfigure"}, c.Name) || m.Name == "data"; m.ReadOnly == writes {
				bad("%s: %s: read-only %v", c.Name, m.Name, m.ReadOnly)
			}
		}
	}
	for name := range volumes {
		if !used[name] {
			bad("nobody mounts %s", name)
		}
	}
	return mistakes
}

// TestHostPort: containerd's requests reach this node's pod, and nobody else's.
func TestHostPort(t *testing.T) {
	for name, tt := range map[string]struct {
		args   []string
		port   core.ContainerPort
		policy core.DNSPolicy
	}{
		"pod network":  {nil, core.ContainerPort{Name: "mirror", ContainerPort: 6500, HostPort: 6500, HostIP: "127.0.0.1"}, ""},
		"other port":   {[]string{"--set", "ports.mirror=7000"}, core.ContainerPort{Name: "mirror", ContainerPort: 7000, HostPort: 7000, HostIP: "127.0.0.1"}, ""},
		"host network": {[]string{"--set", "hostNetwork=true"}, core.ContainerPort{Name: "mirror", ContainerPort: 6500}, core.DNSClusterFirstWithHostNet},
	} {
		t.Run(name, func(t *testing.T) {
			all := render(t, tt.args...)
			spec := find[*apps.DaemonSet](t, all, "shoal").Spec.Template.Spec
			if got := spec.Containers[0].Ports[0]; got != tt.port {
				t.Errorf("port %+v, want %+v", got, tt.port)
			}
			if spec.DNSPolicy != tt.policy {
				t.Errorf("DNS policy %q", spec.DNSPolicy)
			}
			for _, p := range spec.Containers[0].Ports[1:] {
				if p.HostPort != 0 {
					t.Errorf("%s is open on the node", p.Name)
				}
			}
			mirror := fmt.Sprintf("--mirror=http://127.0.0.1:%d", tt.port.ContainerPort)
			for what, args := range map[string][]string{
				"configure": spec.InitContainers[0].Args,
				"test":      find[*core.Pod](t, all, "shoal-test").Spec.Containers[0].Args,
			} {
				if !slices.Contains(args, mirror) {
					t.Errorf("%s: %q lacks %s", what, args, mirror)
				}
			}
		})
	}
}

// TestCleanup: a node is cleaned only when Shoal has gone there, and by pods that
// are where it was.
func TestCleanup(t *testing.T) {
	for name, args := range valuesFiles(t) {
		if name == "host-network" {
			continue // has none
		}
		t.Run(name, func(t *testing.T) {
			all := render(t, args...)
			var shoal, cleanup *apps.DaemonSet
			for _, o := range all {
				if d, ok := o.value.(*apps.DaemonSet); ok && strings.HasSuffix(d.Name, "-cleanup") {
					cleanup = d
				} else if ok {
					shoal = d
				}
			}
			if shoal == nil || cleanup == nil {
				t.Fatal("there are not two DaemonSets")
			}
			was, is := shoal.Spec.Template.Spec, cleanup.Spec.Template.Spec
			if fmt.Sprint(was.Tolerations, was.NodeSelector) != fmt.Sprint(is.Tolerations, is.NodeSelector) {
				t.Error("runs on other nodes than Shoal did")
			}
			away := false
			for _, term := range is.Affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution {
				matches := term.TopologyKey == "kubernetes.io/hostname"
				for k, v := range term.LabelSelector.MatchLabels {
					matches = matches && shoal.Spec.Template.Labels[k] == v
				}
				away = away || matches
				own := true
				for k, v := range term.LabelSelector.MatchLabels {
					own = own && cleanup.Spec.Template.Labels[k] == v
				}
				if own {
					t.Error("keeps itself away")
				}
			}
			if !away {
				t.Error("does not wait until Shoal has gone")
			}
			if was.Affinity != nil && was.Affinity.NodeAffinity != nil && is.Affinity.NodeAffinity == nil {
				t.Error("has lost the node affinity")
			}
			hosts := argument(was.InitContainers[0].Args, "--hosts-dir=")
			for _, c := range slices.Concat(is.InitContainers, is.Containers) {
				if got := argument(c.Args, "--hosts-dir="); got != hosts || got == "" {
					t.Errorf("%s restores %q, and %q was configured", c.Name, got, hosts)
				}
			}
			data := argument(is.InitContainers[0].Args, "--data-dir=")
			if v := volume(was, "data").HostPath.Path; v != data {
				t.Errorf("removes %q, and %q was used", data, v)
			}
			if v := volume(is, "data").HostPath.Path; v != path.Dir(data) {
				t.Errorf("mounts %q to remove %q", v, data)
			}
			if policy := cleanup.Annotations["helm.sh/hook-delete-policy"]; strings.Contains(policy, "succeeded") {
				t.Errorf("%q: Helm deletes it also if not all nodes are clean", policy)
			}
		})
	}
}

// argument is the value of a flag among arguments.
func argument(args []string, flag string) string {
	for _, a := range args {
		if v, ok := strings.CutPrefix(a, flag); ok {
			return v
		}
	}
	return ""
}

func volume(p core.PodSpec, name string) core.Volume {
	for _, v := range p.Volumes {
		if v.Name == name {
			return v
		}
	}
	return core.Volume{}
}

// TestOptions: what is made only when it is asked for.
func TestOptions(t *testing.T) {
	const all = chartDir + "/ci/all-values.yaml"
	for _, tt := range []struct{ args, with, without string }{
		{"", "NetworkPolicy", "ServiceMonitor PodMonitor PrometheusRule GrafanaDashboard VerticalPodAutoscaler ResourceQuota Certificate Issuer"},
		{"-f " + all, "NetworkPolicy ServiceMonitor PodMonitor VerticalPodAutoscaler ResourceQuota", "Certificate Issuer"},
		{"-f " + chartDir + "/ci/host-network-values.yaml", "", "NetworkPolicy Job Role"},
		{"--set distribution=gke", "ResourceQuota", ""},
		{"--set distribution=gke --set priorityQuota=false", "", "ResourceQuota"},
		{"--set tls.mode=insecure", "", "Secret Certificate"},
		{"--set tls.mode=secret --set tls.secretName=x", "", "Secret Certificate"},
		{"--set tls.mode=certManager", "Certificate Issuer Secret", ""},
		{"--set tls.mode=certManager --set tls.certManager.issuerRef.name=x --set tls.gossipSecretName=y", "Certificate", "Issuer Secret"},
		{"--set cleanup.enabled=false", "", "Job Role RoleBinding ServiceAccount"},
	} {
		kinds := map[string]bool{}
		for _, o := range render(t, strings.Fields(tt.args)...) {
			kinds[o.kind] = true
		}
		for _, k := range strings.Fields(tt.with) {
			if !kinds[k] {
				t.Errorf("%q: no %s", tt.args, k)
			}
		}
		for _, k := range strings.Fields(tt.without) {
			if kinds[k] {
				t.Errorf("%q: a %s", tt.args, k)
			}
		}
	}
}

// TestMonitoring: what the chart has of rules and dashboards is made, and decodes.
func TestMonitoring(t *testing.T) {
	all := render(t, "--values", chartDir+"/ci/all-values.yaml")
	for kind, file := range map[string]string{"PrometheusRule": "rules.yaml", "GrafanaDashboard": "dashboard.json"} {
		_, err := os.Stat(filepath.Join(chartDir, "files", file))
		made := slices.ContainsFunc(all, func(o object) bool { return o.kind == kind })
		if made != (err == nil) {
			t.Errorf("%s: made %v, %s: %v", kind, made, file, err)
		}
	}
}

// TestRestart: pods are replaced when the configuration has changed, for they
// read it once, and not otherwise.
func TestRestart(t *testing.T) {
	sum := func(args ...string) string {
		return find[*apps.DaemonSet](t, render(t, args...), "shoal").Spec.Template.Annotations["checksum/config"]
	}
	def := sum()
	if same := sum("--set", "serviceMonitor.enabled=true"); same != def {
		t.Error("a monitor restarts the pods")
	}
	if other := sum("--set", "config.tag-ttl=1m"); other == def || def == "" {
		t.Error("a setting does not restart the pods")
	}
}
