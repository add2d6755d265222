package doctor

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/distribution/reference"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/shoal-dev/shoal/mirror/containerd"
	"github.com/shoal-dev/shoal/mirror/upstream"
)

const (
	// triedImages is how many images of a registry are asked for: some may be private.
	triedImages = 3
	// fewLeft is the part of a limit, one in so many, below which a node that is set
	// up anew may use it up: it pulls a dozen images, and the Hub allows a hundred.
	fewLeft = 5
	// hub counts the pulls of an address, and has an image to ask about them:
	// https://docs.docker.com/docker-hub/usage/pulls/.
	hub      = "docker.io"
	hubImage = "docker.io/ratelimitpreview/test:latest"
)

// pulledImages are some images of each registry that this node's containerd has:
// registries tell of limits when they are asked for an image.
func pulledImages(ctx context.Context, e *Env, registries []string) map[string][]reference.NamedTagged {
	some := map[string][]reference.NamedTagged{}
	add := func(image string) {
		named, err := reference.ParseDockerRef(image)
		tagged, ok := named.(reference.NamedTagged)
		if err != nil || !ok {
			return
		}
		if r := reference.Domain(named); slices.Contains(registries, r) && len(some[r]) < triedImages {
			some[r] = append(some[r], tagged)
		}
	}
	// Where containerd does not answer, there is a finding that says so.
	if conn, err := containerd.Dial(e.socket()); e.Socket != "" && err == nil {
		defer conn.Close()
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		list, _ := cri.NewImageServiceClient(conn).ListImages(ctx, &cri.ListImagesRequest{})
		for _, i := range list.GetImages() {
			for _, tag := range i.GetRepoTags() {
				add(tag)
			}
		}
	}
	if len(some[hub]) == 0 {
		add(hubImage)
	}
	return some
}

// askLimits asks registries for images until each has said how much it lets this
// node pull. Those that do not say, or refuse, are left out.
func askLimits(ctx context.Context, up *upstream.Client, images map[string][]reference.NamedTagged) map[string]upstream.Limit {
	ctx, cancel := context.WithTimeout(ctx, farTimeout)
	defer cancel()
	limits := map[string]upstream.Limit{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for registry, some := range images {
		wg.Go(func() {
			for _, image := range some {
				l, ok, err := up.Limit(ctx, upstream.Repository{Registry: registry, Name: reference.Path(image)}, image.Tag())
				if err == nil && ok {
					mu.Lock()
					limits[registry] = l
					mu.Unlock()
				}
				if err == nil {
					return // the others would hear the same
				}
			}
		})
	}
	wg.Wait()
	return limits
}

// judgeLimits tells what is left of limits, and warns where that is little.
func judgeLimits(limits map[string]upstream.Limit) []Finding {
	var few, enough []string
	for _, registry := range slices.Sorted(maps.Keys(limits)) {
		l := limits[registry]
		line := fmt.Sprintf("%s: %d of %d pulls are left", registry, l.Left, l.Total)
		if l.Window > 0 {
			line += fmt.Sprintf(" in a window of %v", l.Window)
		}
		if l.Left < (l.Total+fewLeft-1)/fewLeft {
			few = append(few, line)
		} else {
			enough = append(enough, line)
		}
	}
	f := Finding{
		ID: "upstream-limit", Severity: Warning, Title: "a registry will soon throttle this address",
		Evidence:    few,
		Consequence: "when none is left, new images wait or fail; what some node holds is served",
		Fix: "let all nodes pull through Shoal, so that each image is asked for once; see the other findings for what comes past it. " +
			"With credentials the limit is usually higher: a pull secret of the pods', or --docker-config with --authorization " +
			"HOST=node (credentials.secretName and authorization in the chart)",
	}
	var all []Finding
	if len(few) > 0 {
		all = append(all, f)
	}
	if len(enough) > 0 {
		f.Severity, f.Evidence, f.Title = Note, enough, "a registry limits what this address may pull"
		all = append(all, f)
	}
	return all
}
