package doctor

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"time"

	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"google.golang.org/protobuf/types/known/emptypb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/shoal-dev/shoal/mirror/containerd"
)

// checkContainerd looks whether containerd answers, and is one that is known. It
// returns its version, empty if it does not answer.
func checkContainerd(ctx context.Context, e *Env) (version string, found []Finding) {
	if e.Socket == "" {
		return "", nil
	}
	conn, err := containerd.Dial(e.socket())
	if err == nil {
		defer conn.Close()
		var v *versionapi.VersionResponse
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		if v, err = versionapi.NewVersionClient(conn).Version(ctx, &emptypb.Empty{}); err == nil {
			return v.GetVersion(), judgeVersion(v.GetVersion())
		}
	}
	return "", []Finding{{
		ID: "containerd-unreachable", Severity: Error, Title: "containerd does not answer at its socket",
		Evidence:    []string{e.Socket + ": " + err.Error()},
		Consequence: "what containerd holds here is not shared with other nodes",
		Fix:         "is containerd running, and is that its socket? Give --containerd-socket (containerd.socket or distribution in the chart)",
	}}
}

// judgeVersion says whether a version is older than those that are tested.
func judgeVersion(version string) []Finding {
	if r, ok := parseRelease(version); !ok || r.atLeast(1, 6) {
		return nil
	}
	return []Finding{{
		ID: "containerd-old", Severity: Warning, Title: "this containerd is older than any that Shoal is tested with",
		Evidence:    []string{"version " + version},
		Consequence: "before 1.6 containerd may not fall back to the registry where it should",
		Fix:         "upgrade containerd to 1.6 or later",
	}}
}

// canaryCounted is the mirror's count of canaries.
const canaryCounted = `shoal_mirror_fallbacks_total{reason="canary"}`

// canaryInterval is how often it is looked for.
const canaryInterval = 200 * time.Millisecond

// checkCanary has containerd pull an image that does not exist, and looks whether
// it asks the mirror for it: an idle Shoal and one that is passed by look alike
// otherwise.
func checkCanary(ctx context.Context, e *Env, s shoal) []Finding {
	skip := func(why string) []Finding {
		return []Finding{{
			ID: "not-examined", Severity: Note, Title: "whether containerd asks the mirror was not tried",
			Evidence:    []string{why},
			Consequence: "containerd may pass Shoal by for a reason that no file shows",
			Fix:         "run the doctor where containerd's socket and Shoal's metrics can be reached, without --no-canary",
		}}
	}
	switch {
	case !e.Canary:
		return skip("--no-canary")
	case e.Socket == "":
		return skip("there is no containerd-socket")
	case s.err != nil:
		return skip(s.err.Error())
	case len(e.Registries.Named()) == 0:
		return skip("no registry is mirrored by its name, only patterns are")
	}
	conn, err := containerd.Dial(e.socket())
	if err != nil {
		return skip(err.Error())
	}
	defer conn.Close()
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return skip(err.Error())
	}
	image := e.Registries.Named()[0] + "/shoal-doctor/canary:" + hex.EncodeToString(random[:])
	// containerd goes on to the registry, which may not answer. Whether it came here
	// first is known long before.
	pullCtx, cancel := context.WithTimeout(ctx, 4*farTimeout)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := cri.NewImageServiceClient(conn).PullImage(pullCtx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: image}})
		ended <- err
	}()
	var pulled error
	for over := false; !over; {
		select {
		case pulled = <-ended:
			over = true
		case <-time.After(canaryInterval):
		}
		now, err := readMetrics(ctx, e)
		if err == nil && now[canaryCounted] <= s.metrics[canaryCounted] {
			continue
		}
		if !over {
			cancel()
			_ = <-ended // it was asked to
		}
		if err != nil {
			return skip(err.Error())
		}
		return nil
	}
	return []Finding{{
		ID: "bypassed", Severity: Error, Title: "containerd does not ask the mirror",
		Evidence:    []string{fmt.Sprintf("a pull of %s did not come to the mirror; containerd said: %v", image, pulled)},
		Consequence: "images come from the registries as if Shoal were not there",
		Fix:         "see the other findings. If there are none: was containerd restarted since its configuration was changed?",
	}}
}
