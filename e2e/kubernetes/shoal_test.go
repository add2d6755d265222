//go:build e2e

package kubernetes

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shoal-dev/shoal/e2e/lab"
)

const (
	namespace = "shoal-system"
	release   = "shoal"
	// privatePort is where the registry wants a password, for the same images.
	privatePort = "5100"
	privateHost = "registry.lab:" + privatePort
	user        = "pod"
	password    = "s3cr3t-of-a-p0d"
	// passwords is the line of htpasswd for them, of the least cost.
	passwords = "pod:$2a$04$cQC0LdwGh/S53iLaAP2PlOAKzVTJKGnIzkrhs1Mda7MLBgPkYPfYa\n"
)

// values are the laboratory's: its registry is no public one and has no TLS.
// Everything else is as the chart has it.
const values = `
image:
  repository: ` + lab.RegistryHost + `/shoal-dev/shoal
  tag: lab
registries: ["` + lab.RegistryHost + `", "` + privateHost + `"]
config:
  insecure-registry: ["` + lab.RegistryHost + `", "` + privateHost + `"]
`

// TestShoal installs the chart, works with it, and takes it out again. Its parts
// follow each other on one cluster.
func TestShoal(t *testing.T) {
	// Slow enough that pulls take seconds and can be disturbed, fast enough that
	// 3 nodes and 2 processors do it in time.
	const rate = 200 * lab.Mbit
	c := newCluster(t, Config{Nodes: 3, Rate: rate, RegistryRate: rate})
	s := &suite{Cluster: c, rate: rate}
	s.prepare(t)
	s.startPrometheus(t)
	for _, part := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"Install", s.install},
		{"Rollout", s.rollout},
		{"NetworkPolicy", s.networkPolicy},
		{"Upgrade", s.upgrade},
		{"NoAlerts", s.noAlerts},
		{"Private", s.private},
		{"NodeLost", s.nodeLost},
		{"ContainerdStops", s.containerdStops},
		{"Outage", s.outage},
		{"CertManager", s.certManager},
		{"Dashboard", s.dashboard},
		{"UpgradeOfShoal", s.upgradeOfShoal},
		{"HostNetwork", s.hostNetwork},
		{"Rollback", s.rollback},
		{"NeverFired", s.neverFired},
		{"Uninstall", s.uninstall},
	} {
		if !t.Run(part.name, part.run) {
			t.Fatalf("%s failed: what follows needs it", part.name)
		}
	}
}

type suite struct {
	*Cluster
	rate   lab.Rate
	chart  string
	values string
	// prometheus scrapes Shoal from the start.
	prometheus *prometheusServer
	// before is what the nodes were like.
	before []map[string]string
}

// prepare pushes Shoal's own image, and starts a registry that wants a password.
func (s *suite) prepare(t *testing.T) {
	root, err := lab.ModuleRoot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.chart = filepath.Join(root, "helm/shoal")
	s.values = filepath.Join(s.Lab.Dir, "values.yaml")
	if err := os.WriteFile(s.values, []byte(values), 0o644); err != nil {
		t.Fatal(err)
	}
	s.pushShoal(t, root)
	s.startPrivateRegistry(t)
	for _, n := range s.Nodes {
		dir := filepath.Join(HostsDir, privateHost)
		if err := os.MkdirAll(n.Path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprintf("server = \"http://%s\"\r\n\n# no line end follows", privateHost)
		if err := os.WriteFile(n.Path(filepath.Join(dir, "hosts.toml")), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s.before = append(s.before, files(t, n, "/etc/containerd"))
	}
}

// pushShoal makes Shoal's image of the source tree, and pushes it from the
// registry's own machine.
func (s *suite) pushShoal(t *testing.T, root string) {
	t.Helper()
	bin := filepath.Join(s.Lab.Dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	shoal, err := lab.BuildShoal(t.Context(), bin, false)
	if err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(bin, "image")
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", image, "./cmd/image")
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build cmd/image: %v\n%s", err, out)
	}
	out, err := output(s.Lab.Registry.Machine, []string{"PATH=" + os.Getenv("PATH"), "HOME=" + bin}, "",
		image, "-insecure", "-push", "127.0.0.1:5000/shoal-dev/shoal:lab", shoal)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(out)
}

// startPrivateRegistry serves the same images for a password only.
func (s *suite) startPrivateRegistry(t *testing.T) {
	t.Helper()
	dir := filepath.Join(s.Lab.Dir, "private")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	htpasswd := filepath.Join(dir, "htpasswd")
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf(`version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: %s}}
http: {addr: "0.0.0.0:%s"}
auth: {htpasswd: {realm: lab, path: %s}}
`, filepath.Join(s.Lab.Dir, "registry"), privatePort, htpasswd)
	for path, text := range map[string]string{htpasswd: passwords, config: text} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p, err := s.Lab.Registry.StartProcess("private", filepath.Join(dir, "private.log"),
		[]string{"PATH=" + os.Getenv("PATH"), "OTEL_TRACES_EXPORTER=none"}, s.Lab.Programs().Registry, "serve", config)
	if err != nil {
		t.Fatal(err)
	}
	client := s.Lab.Registry.Client()
	t.Cleanup(client.CloseIdleConnections)
	err = lab.WaitFor(t.Context(), p, func() error {
		resp, err := client.Get("http://127.0.0.1:" + privatePort + "/v2/")
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
}

// helm runs a command of helm on the release and fails the test if it fails.
func (s *suite) helm(t *testing.T, verb string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	began := time.Now()
	out, err := s.Helm(ctx, append([]string{verb, release}, append(args, "--namespace", namespace, "--wait", "--timeout", "4m")...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("helm %s took %v", verb, time.Since(began).Round(100*time.Millisecond))
	return out
}

// install: with its default values, the chart runs on all nodes and containerd
// asks it first.
func (s *suite) install(t *testing.T) {
	out := s.helm(t, "install", s.chart, "--create-namespace", "--values", s.values)
	t.Log(out)
	waitReady(t, s.Cluster, namespace, release, len(s.Nodes))
	for _, n := range s.Nodes {
		for _, registry := range []string{lab.RegistryHost, privateHost, "_default"} {
			p, err := os.ReadFile(n.Path(filepath.Join(HostsDir, registry, "hosts.toml")))
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(p), `[host."http://127.0.0.1:6500"]`) {
				t.Errorf("%s: hosts.toml of %s does not name the mirror:\n%s", n.Name, registry, p)
			}
		}
		eventually(t, time.Minute, n.Name+" to see all members", func() bool {
			return s.metrics(t, n)["shoal_members"] == float64(len(s.Nodes))
		})
	}
	out, err := s.Helm(t.Context(), "test", release, "--namespace", namespace)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// Its exit status says that it found nothing.
	for _, pod := range s.pods(t) {
		t.Logf("shoal doctor on %s:\n%s", pod.Spec.NodeName,
			s.kubectl(t, "exec", "--namespace", namespace, pod.Metadata.Name, "--container", "shoal", "--", "shoal", "doctor"))
	}
}

// rollout: about one copy of a new image leaves the registry.
func (s *suite) rollout(t *testing.T) {
	img := push(t, s.Cluster, "app", "v1", 200e6, 4, 0)
	const fresh, through, past = "shoal_tracker_new_bytes_total",
		`shoal_mirror_landed_blobs_total{through="mirror"}`, `shoal_mirror_landed_blobs_total{through="elsewhere"}`
	before := map[string]float64{}
	for _, m := range []string{fresh, through, past} {
		before[m] = s.sum(t, m)
	}
	took, bytes := rollOut(t, s.Cluster, "app", daemonSet("app", img.Ref), len(s.Nodes))
	s.check(t, "app", took, bytes, img.Size())
	// What the alerts go by: one copy was new to the cluster, and all blobs of all
	// nodes came through the mirror.
	if n := s.sum(t, fresh) - before[fresh]; n != float64(img.Size()) {
		t.Errorf("%.0f bytes counted as new to the cluster, want %d", n, img.Size())
	}
	want := float64(len(s.Nodes) * (len(img.Layers) + 2))
	eventually(t, 30*time.Second, fmt.Sprintf("%.0f blobs to be counted as landed", want), func() bool {
		return s.sum(t, through)-before[through] == want
	})
	if n := s.sum(t, past) - before[past]; n != 0 {
		t.Errorf("%.0f blobs counted as landed past the mirror", n)
	}
	for _, n := range s.Nodes {
		m := s.metrics(t, n)
		t.Logf("Shoal on %s: %.0f MiB resident, %.1f s of CPU since its start", n.Name,
			m["process_resident_memory_bytes"]/(1<<20), m["process_cpu_seconds_total"])
	}
}

// sum of a metric over all nodes.
func (s *suite) sum(t *testing.T, metric string) float64 {
	t.Helper()
	var sum float64
	for _, n := range s.Nodes {
		sum += s.metrics(t, n)[metric]
	}
	return sum
}

// check verifies that no pull failed and that no more than 1.1 copies of size
// bytes left the registry.
func (s *suite) check(t *testing.T, pods string, took time.Duration, bytes, size int64) {
	t.Helper()
	copies := float64(bytes) / float64(size)
	t.Logf("rolled out in %v (%v at the links' speed); %.3f copies left the registry",
		took.Round(100*time.Millisecond), s.rate.Time(size).Round(100*time.Millisecond), copies)
	if copies > 1.1 {
		t.Errorf("%.3f copies left the registry, want at most 1.1", copies)
	}
	if failed := failedPulls(t, s.Cluster, pods); len(failed) > 0 {
		t.Errorf("failed pulls: %+v", failed)
	}
}

// upgrade: of a new version only the layer moves that changed.
func (s *suite) upgrade(t *testing.T) {
	img := push(t, s.Cluster, "app", "v2", 200e6, 4, 99)
	took, bytes := rollOut(t, s.Cluster, "app", daemonSet("app", img.Ref), len(s.Nodes))
	s.check(t, "app", took, bytes, img.Layers[3].Size)
}

// upgradeOfShoal: Shoal is replaced on all nodes, one after the other, while pods
// are being pulled, and none of them fails.
func (s *suite) upgradeOfShoal(t *testing.T) {
	img := push(t, s.Cluster, "during", "v1", 400e6, 4, 0)
	before := sent(t, s.Cluster)
	began := time.Now()
	s.apply(t, daemonSet("during", img.Ref))
	s.helm(t, "upgrade", s.chart, "--values", s.values, "--set", "config.log-level=debug")
	waitReady(t, s.Cluster, namespace, release, len(s.Nodes))
	waitReady(t, s.Cluster, "default", "during", len(s.Nodes))
	t.Logf("rolled out in %v, %.3f copies", time.Since(began), float64(sent(t, s.Cluster)-before)/float64(img.Size()))
	if failed := failedPulls(t, s.Cluster, "during"); len(failed) > 0 {
		t.Errorf("failed pulls: %+v", failed)
	}
}

// private: an image behind a password comes through the swarm for pods that have
// it, and not at all for others, on nodes that hold it.
func (s *suite) private(t *testing.T) {
	img := push(t, s.Cluster, "private", "v1", 60e6, 2, 0)
	ref := strings.Replace(img.Ref, lab.RegistryHost, privateHost, 1)
	s.kubectl(t, "create", "secret", "docker-registry", "pull", "--docker-server="+privateHost,
		"--docker-username="+user, "--docker-password="+password)
	took, bytes := rollOut(t, s.Cluster, "private",
		daemonSet("private", ref, "      imagePullSecrets: [{name: pull}]\n"), len(s.Nodes))
	s.check(t, "private", took, bytes, img.Size())

	for _, policy := range []string{"Always", "IfNotPresent"} {
		name := "stranger-" + strings.ToLower(policy)
		s.apply(t, strings.ReplaceAll(daemonSet(name, ref), "Always", policy))
		eventually(t, 2*time.Minute, name+" to be refused on all nodes", func() bool {
			refused := map[string]bool{}
			for _, pod := range s.podsOf(t, "default", "app="+name) {
				for _, c := range pod.Status.ContainerStatuses {
					if c.State.Running != nil {
						t.Fatalf("%s runs on %s without the secret", name, pod.Spec.NodeName)
					}
					if w := c.State.Waiting; w != nil && (w.Reason == "ErrImagePull" || w.Reason == "ImagePullBackOff") {
						refused[pod.Spec.NodeName] = true
					}
				}
			}
			return len(refused) == len(s.Nodes)
		})
		s.kubectl(t, "delete", "daemonset", name)
	}
}

// nodeLost: a node dies in the middle of a rollout and comes back; the others are
// not held up, and it pulls through the swarm again.
func (s *suite) nodeLost(t *testing.T) {
	img := push(t, s.Cluster, "lost", "v1", 200e6, 4, 0)
	victim := s.Nodes[2]
	s.apply(t, daemonSet("lost", img.Ref))
	start, err := victim.Traffic()
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "the pull to be under way", func() bool {
		now, err := victim.Traffic()
		if err != nil {
			t.Fatal(err)
		}
		return now.Received-start.Received > 40e6
	})
	if err := victim.Kill(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	eventually(t, time.Minute, "the pods of the other nodes", func() bool {
		ready := 0
		for _, pod := range s.podsOf(t, "default", "app=lost") {
			if pod.ready() && pod.Spec.NodeName != victim.Name {
				ready++
			}
		}
		return ready == len(s.Nodes)-1
	})
	t.Logf("the others were ready %v after the loss", time.Since(began).Round(100*time.Millisecond))
	if err := victim.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := victim.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitReady(t, s.Cluster, namespace, release, len(s.Nodes))
	waitReady(t, s.Cluster, "default", "lost", len(s.Nodes))
	t.Logf("all were ready %v after the loss", time.Since(began).Round(100*time.Millisecond))

	img = push(t, s.Cluster, "back", "v1", 100e6, 2, 0)
	took, bytes := rollOut(t, s.Cluster, "back", daemonSet("back", img.Ref), len(s.Nodes))
	s.check(t, "back", took, bytes, img.Size())
}

// outage: pods start with the registry gone, on nodes that do not have the image
// yet, by tag and with the policy that always pulls.
func (s *suite) outage(t *testing.T) {
	img := push(t, s.Cluster, "outage", "v1", 60e6, 2, 0)
	rollOut(t, s.Cluster, "outage", daemonSet("outage", img.Ref, onNodes("n1")), 1)
	if err := s.Lab.CutRegistry(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	s.apply(t, daemonSet("outage", img.Ref))
	waitReady(t, s.Cluster, "default", "outage", len(s.Nodes))
	t.Logf("rolled out in %v without the registry", time.Since(began).Round(100*time.Millisecond))
	s.becomes(t, "ShoalDegraded", "pending")
	if err := s.Lab.RestoreRegistry(); err != nil {
		t.Fatal(err)
	}
}

// hostNetwork: for clusters whose CNI has no hostPort.
func (s *suite) hostNetwork(t *testing.T) {
	s.helm(t, "upgrade", s.chart, "--values", s.values, "--set", "hostNetwork=true")
	waitReady(t, s.Cluster, namespace, release, len(s.Nodes))
	for _, pod := range s.pods(t) {
		if !strings.HasPrefix(pod.Status.PodIP, "10.77.") {
			t.Errorf("the pod on %s has the address %s, want the node's", pod.Spec.NodeName, pod.Status.PodIP)
		}
	}
	img := push(t, s.Cluster, "hostnetwork", "v1", 60e6, 2, 0)
	took, bytes := rollOut(t, s.Cluster, "hostnetwork", daemonSet("hostnetwork", img.Ref), len(s.Nodes))
	s.check(t, "hostnetwork", took, bytes, img.Size())
}

// rollback: the first revision comes back, and works.
func (s *suite) rollback(t *testing.T) {
	s.helm(t, "rollback", "1")
	waitReady(t, s.Cluster, namespace, release, len(s.Nodes))
	img := push(t, s.Cluster, "rollback", "v1", 60e6, 2, 0)
	took, bytes := rollOut(t, s.Cluster, "rollback", daemonSet("rollback", img.Ref), len(s.Nodes))
	s.check(t, "rollback", took, bytes, img.Size())
}

// uninstall: every node is as it was, byte for byte.
func (s *suite) uninstall(t *testing.T) {
	t.Log(s.helm(t, "uninstall"))
	for i, n := range s.Nodes {
		if diff := cmp.Diff(s.before[i], files(t, n, "/etc/containerd")); diff != "" {
			t.Errorf("%s: /etc/containerd is not as it was:\n%s", n.Name, diff)
		}
		if _, err := os.Stat(n.Path("/var/lib/shoal")); err == nil {
			t.Errorf("%s: /var/lib/shoal is left: %v", n.Name, slices.Sorted(maps.Keys(files(t, n, "/var/lib/shoal"))))
		}
	}
	eventually(t, time.Minute, "nothing to be left in the cluster", func() bool {
		left := s.kubectl(t, "get", "all,secrets,configmaps,roles,rolebindings,serviceaccounts", "--namespace", namespace,
			"--selector", "app.kubernetes.io/instance="+release, "--output", "name")
		if left != "" {
			t.Logf("left: %s", strings.Join(strings.Fields(left), " "))
		}
		return left == ""
	})
	img := push(t, s.Cluster, "after", "v1", 20e6, 1, 0)
	rollOut(t, s.Cluster, "after", daemonSet("after", img.Ref), len(s.Nodes))
}

// pod is the part of a pod that tests look at.
type pod struct {
	Metadata struct{ Name string }
	Spec     struct{ NodeName string }
	Status   struct {
		PodIP      string
		Conditions []struct{ Type, Status string }

		ContainerStatuses []struct {
			State struct {
				Running *struct{}
				Waiting *struct{ Reason, Message string }
			}
		}
	}
}

func (p pod) ready() bool {
	for _, c := range p.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True"
		}
	}
	return false
}

func (s *suite) podsOf(t *testing.T, namespace, selector string) []pod {
	t.Helper()
	var list struct{ Items []pod }
	s.get(t, &list, "pods", "--namespace", namespace, "--selector", selector)
	return list.Items
}

// pods are Shoal's.
func (s *suite) pods(t *testing.T) []pod {
	t.Helper()
	return s.podsOf(t, namespace, "app.kubernetes.io/component=node")
}

// metrics are what Shoal on n says of itself, summed up over labels. A pod that
// cannot be read has none.
func (s *suite) metrics(t *testing.T, n *Node) lab.Metrics {
	t.Helper()
	for _, pod := range s.pods(t) {
		if pod.Spec.NodeName != n.Name || pod.Status.PodIP == "" {
			continue
		}
		client := n.Client()
		defer client.CloseIdleConnections()
		m, err := lab.ReadMetrics(t.Context(), client, "http://"+pod.Status.PodIP+":"+lab.MetricsPort+"/metrics")
		if err != nil {
			t.Log(err)
		}
		return m
	}
	return nil
}
