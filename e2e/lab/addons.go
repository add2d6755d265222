package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Addons are what clusters have besides Kubernetes itself.
type Addons struct {
	// CertManager is the path of what issues certificates, CertManagerKinds the folder
	// of the definitions of its kinds.
	CertManager, CertManagerKinds string
	// KubeRouter is the path of what enforces network policies.
	KubeRouter string
}

// BuildAddons returns them, built as [BuildPrograms] does.
func BuildAddons(ctx context.Context) (Addons, error) {
	var a Addons
	root, err := moduleRoot(ctx)
	if err != nil {
		return a, err
	}
	if a.CertManager, err = buildProgram(ctx, "cert-manager", false, "."); err != nil {
		return a, err
	}
	source, err := moduleDir(ctx, filepath.Join(root, "e2e/programs/cert-manager"), "github.com/cert-manager/cert-manager")
	if err != nil {
		return a, err
	}
	a.CertManagerKinds = filepath.Join(source, "deploy/crds")
	a.KubeRouter, err = buildProgram(ctx, "kube-router", false, "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router")
	return a, err
}

// moduleDir is where the source of a module is that the one in dir requires.
func moduleDir(ctx context.Context, dir, module string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", module)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find %s: %w", module, commandError(err))
	}
	var m struct{ Dir string }
	if err := json.Unmarshal(out, &m); err != nil {
		return "", fmt.Errorf("find %s: %w", module, err)
	}
	return m.Dir, nil
}
