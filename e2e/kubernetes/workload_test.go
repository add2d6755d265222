//go:build e2e

package kubernetes

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/shoal-dev/shoal/e2e/lab"
)

// push makes an image for pods, of incompressible layers that no other image
// has but one of the same name and seed; lastSeed as in [lab.ImageSpec].
func push(t *testing.T, c *Cluster, name, tag string, size int64, layers int, lastSeed uint64) lab.Image {
	t.Helper()
	img, err := c.Lab.Push(t.Context(), lab.ImageSpec{
		Repository: "apps/" + name, Tag: tag, Size: size, Layers: layers, Stay: true,
		Seed: uint64(len(name))*1e9 + uint64(size), LastSeed: lastSeed,
	})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// daemonSet is a manifest of pods of an image on all nodes, or on those that a
// selector names.
func daemonSet(name, image string, extra ...string) string {
	return fmt.Sprintf(`apiVersion: apps/v1
kind: DaemonSet
metadata: {name: %[1]s}
spec:
  selector: {matchLabels: {app: %[1]s}}
  updateStrategy: {rollingUpdate: {maxUnavailable: 100%%}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: app
        image: %[2]s
        imagePullPolicy: Always
%[3]s`, name, image, strings.Join(extra, ""))
}

// onNodes is an extra of [daemonSet]: where its pods are.
func onNodes(names ...string) string {
	return fmt.Sprintf(`      affinity:
        nodeAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            nodeSelectorTerms:
            - matchFields: [{key: metadata.name, operator: In, values: [%s]}]
`, strings.Join(names, ", "))
}

// rollOut applies a DaemonSet and waits until as many pods of it run. It
// returns how long that took, and how many bytes left the registry.
func rollOut(t *testing.T, c *Cluster, name, manifest string, pods int) (time.Duration, int64) {
	t.Helper()
	began, before := time.Now(), sent(t, c)
	c.apply(t, manifest)
	waitReady(t, c, "default", name, pods)
	return time.Since(began), sent(t, c) - before
}

// waitReady waits until a DaemonSet has so many pods, all new and ready.
// (`kubectl rollout status` is content with none, before there are any.)
func waitReady(t *testing.T, c *Cluster, namespace, name string, pods int) {
	t.Helper()
	eventually(t, 2*time.Minute, fmt.Sprintf("%d ready pods of %s", pods, name), func() bool {
		var set struct {
			Metadata struct{ Generation int }
			Status   struct {
				ObservedGeneration, DesiredNumberScheduled, UpdatedNumberScheduled, NumberReady, NumberAvailable int
			}
		}
		c.get(t, &set, "--namespace", namespace, "daemonset", name)
		s := set.Status
		return s.ObservedGeneration == set.Metadata.Generation && s.DesiredNumberScheduled == pods &&
			s.UpdatedNumberScheduled == pods && s.NumberReady == pods && s.NumberAvailable == pods
	})
}

// sent is what left the registry so far, by its interface's counter.
func sent(t *testing.T, c *Cluster) int64 {
	t.Helper()
	traffic, err := c.Lab.RegistryTraffic()
	if err != nil {
		t.Fatal(err)
	}
	return traffic.Sent
}

// event is what went wrong, or right, with an object.
type event struct {
	Reason, Message string
	Count           int
	InvolvedObject  struct{ Kind, Name string }
}

// failedPulls are the events of pulls that failed, of pods whose names begin so. A
// kubelet that has not heard of a pod's secret within a second pulls without it and
// tries again later: no pull with the secret has failed then.
func failedPulls(t *testing.T, c *Cluster, pods string) []event {
	t.Helper()
	var list struct{ Items []event }
	c.get(t, &list, "events", "--all-namespaces", "--field-selector=type=Warning")
	without := map[string]bool{}
	for _, e := range list.Items {
		if e.Reason == "FailedToRetrieveImagePullSecret" {
			without[e.InvolvedObject.Name] = true
		}
	}
	var failed []event
	for _, e := range list.Items {
		switch {
		case !strings.HasPrefix(e.InvolvedObject.Name, pods) || e.Reason != "Failed":
		case without[e.InvolvedObject.Name]:
			t.Logf("%s, whose kubelet had not heard of its secret: %s", e.InvolvedObject.Name, e.Message)
		default:
			failed = append(failed, e)
		}
	}
	return failed
}
