package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/shoal-dev/shoal/mirror/upstream"
)

// checkUpstreams looks whether Shoal reaches the registries, so that it is not
// blamed for them.
func checkUpstreams(ctx context.Context, e *Env) []Finding {
	registries := e.Registries.Named()
	var failures, limited []string
	for i, err := range ping(ctx, e.Upstream, registries) {
		switch {
		case errors.Is(err, upstream.ErrRateLimited):
			limited = append(limited, registries[i])
		case err != nil:
			failures = append(failures, err.Error())
		}
	}
	var all []Finding
	if len(failures) > 0 {
		all = append(all, Finding{
			ID: "upstream-unreachable", Severity: Warning, Title: fmt.Sprintf("%d of %d registries do not answer from here", len(failures), len(registries)),
			Evidence:    failures,
			Consequence: "Shoal serves of them what some node holds, and leaves the rest to containerd",
			Fix:         "if the cluster uses them: is there a proxy (HTTPS_PROXY, extraEnv), an egress policy, an authority of your own (--registry-ca)? If not, mirror only those that it uses (--registry)",
		})
	}
	if len(limited) > 0 {
		slices.Sort(limited)
		all = append(all, Finding{
			ID: "upstream-limited", Severity: Warning, Title: "a registry throttles this address",
			Evidence:    []string{fmt.Sprintf("429 from %q", limited)},
			Consequence: "new images wait or fail; what some node holds is served",
			Fix:         "wait, or pull with credentials, which usually have a higher limit",
		})
	}
	return append(all, judgeLimits(askLimits(ctx, e.Upstream, pulledImages(ctx, e, registries)))...)
}

// ping asks registries, and returns how each failed, nil where it answers.
func ping(ctx context.Context, up *upstream.Client, registries []string) []error {
	ctx, cancel := context.WithTimeout(ctx, farTimeout)
	defer cancel()
	answers := make([]error, len(registries))
	var wg sync.WaitGroup
	for i, r := range registries {
		wg.Go(func() { answers[i] = up.Ping(ctx, r) })
	}
	wg.Wait()
	return answers
}
