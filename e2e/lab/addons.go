package lab

import (
	"context"
	"path/filepath"
)

// Addons are what clusters have besides Kubernetes itself.
type Addons struct {
	// KubeRouter is the path of what enforces network policies.
	KubeRouter string
}

// BuildAddons returns them, built as [BuildPrograms] does.
func BuildAddons(ctx context.Context) (Addons, error) {
	root, err := moduleRoot(ctx)
	if err != nil {
		return Addons{}, err
	}
	router, err := buildCached(ctx, filepath.Join(root, "e2e/programs/kube-router"), "",
		"github.com/cloudnativelabs/kube-router/v2/cmd/kube-router")
	if err != nil {
		return Addons{}, err
	}
	return Addons{
		KubeRouter: filepath.Join(router, "kube-router"),
	}, nil
}
