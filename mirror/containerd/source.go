package containerd

import (
	"context"
	"errors"
	"strings"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
)

// sourceLabel begins the labels that say from which registry, and of which
// repositories, a blob was pulled. Content that was imported has none.
const sourceLabel = "containerd.io/distribution.source."

// Sources counts the blobs of containerd, and those of them of which no namespace
// says from where they are.
func Sources(ctx context.Context, socket string) (unlabelled, all int, err error) {
	d, err := newDaemon(strings.TrimPrefix(socket, "unix://"))
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, d.conn.Close()) }()
	spaces, err := d.listNamespaces(ctx)
	if err != nil {
		return 0, 0, err
	}
	labelled := map[key]bool{}
	for _, ns := range spaces {
		err := d.list(ctx, ns, func(k key, i *contentapi.Info) { labelled[k] = labelled[k] || hasSource(i.GetLabels()) })
		if err != nil {
			return 0, 0, err
		}
	}
	for _, has := range labelled {
		if !has {
			unlabelled++
		}
	}
	return unlabelled, len(labelled), nil
}

func hasSource(labels map[string]string) bool {
	for name, value := range labels {
		if strings.HasPrefix(name, sourceLabel) && value != "" {
			return true
		}
	}
	return false
}
