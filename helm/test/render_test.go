package chart

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	certmanager "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	apps "k8s.io/api/apps/v1"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	rbac "k8s.io/api/rbac/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	vpa "k8s.io/autoscaler/vertical-pod-autoscaler/pkg/apis/autoscaling.k8s.io/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

const (
	chartDir = "../shoal"
	// namespace and release of what is rendered.
	namespace = "images"
	release   = "shoal"
	// kubeVersion is what helm is to believe, which asks no cluster here.
	kubeVersion = "1.36.0"
)

// program is the path of a program that `make chart` gives.
func program(t *testing.T, env string) string {
	t.Helper()
	path := os.Getenv(env)
	if path == "" {
		t.Fatalf("%s is not set: run these tests with 'make chart'", env)
	}
	return path
}

// helm runs helm, and returns what it says on standard output and error.
func helm(t *testing.T, args ...string) (out, errs string, err error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program(t, "HELM"), args...)
	// No settings, caches and clusters of whoever runs the test.
	home := t.TempDir()
	cmd.Env = []string{"HOME=" + home, "KUBECONFIG=" + filepath.Join(home, "none")}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	return stdout.String(), stderr.String(), err
}

// template renders the chart with more arguments of helm's.
func template(t *testing.T, args ...string) (string, error) {
	t.Helper()
	out, errs, err := helm(t, append([]string{"template", release, chartDir, "--namespace", namespace, "--kube-version", kubeVersion}, args...)...)
	if err != nil {
		return out, errors.New(strings.TrimSpace(errs))
	}
	return out, nil
}

// valuesFiles are those in ci, by name, and "" without any.
func valuesFiles(t *testing.T) map[string][]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(chartDir, "ci", "*-values.yaml"))
	if err != nil || len(files) < 10 {
		t.Fatalf("found %d files of values: %v", len(files), err)
	}
	all := map[string][]string{"default": nil}
	for _, f := range files {
		all[strings.TrimSuffix(filepath.Base(f), "-values.yaml")] = []string{"--values", f}
	}
	return all
}

// object is one rendered object.
type object struct {
	kind string
	meta.Object
	// pod is the specification of its pods, if it has any.
	pod *core.PodSpec
	// value has the object's own type.
	value any
}

// dashboard is Grafana's, of whose operator there is no small module.
type dashboard struct {
	meta.TypeMeta   `json:",inline"`
	meta.ObjectMeta `json:"metadata"`
	Spec            struct {
		InstanceSelector meta.LabelSelector        `json:"instanceSelector"`
		Folder           string                    `json:"folder"`
		ConfigMapRef     core.ConfigMapKeySelector `json:"configMapRef"`
	} `json:"spec"`
}

// empty returns an object of a kind to decode into.
func empty(apiVersion, kind string) (meta.Object, *core.PodSpec) {
	switch apiVersion + " " + kind {
	case "v1 ConfigMap":
		return &core.ConfigMap{}, nil
	case "v1 Secret":
		return &core.Secret{}, nil
	case "v1 Service":
		return &core.Service{}, nil
	case "v1 ServiceAccount":
		return &core.ServiceAccount{}, nil
	case "v1 ResourceQuota":
		return &core.ResourceQuota{}, nil
	case "v1 Pod":
		o := &core.Pod{}
		return o, &o.Spec
	case "apps/v1 DaemonSet":
		o := &apps.DaemonSet{}
		return o, &o.Spec.Template.Spec
	case "batch/v1 Job":
		o := &batch.Job{}
		return o, &o.Spec.Template.Spec
	case "rbac.authorization.k8s.io/v1 Role":
		return &rbac.Role{}, nil
	case "rbac.authorization.k8s.io/v1 RoleBinding":
		return &rbac.RoleBinding{}, nil
	case "networking.k8s.io/v1 NetworkPolicy":
		return &networking.NetworkPolicy{}, nil
	case "monitoring.coreos.com/v1 ServiceMonitor":
		return &monitoring.ServiceMonitor{}, nil
	case "monitoring.coreos.com/v1 PodMonitor":
		return &monitoring.PodMonitor{}, nil
	case "monitoring.coreos.com/v1 PrometheusRule":
		return &monitoring.PrometheusRule{}, nil
	case "cert-manager.io/v1 Certificate":
		return &certmanager.Certificate{}, nil
	case "cert-manager.io/v1 Issuer":
		return &certmanager.Issuer{}, nil
	case "autoscaling.k8s.io/v1 VerticalPodAutoscaler":
		return &vpa.VerticalPodAutoscaler{}, nil
	case "grafana.integreatly.org/v1beta1 GrafanaDashboard":
		return &dashboard{}, nil
	}
	return nil, nil
}

// decode reads rendered text. Fields that the API does not have, values of a
// wrong type and keys that stand twice are errors.
func decode(text string) ([]object, error) {
	var all []object
	for _, doc := range strings.Split("\n"+text, "\n---\n") {
		var head meta.TypeMeta
		if err := yaml.Unmarshal([]byte(doc), &head); err != nil {
			return nil, err
		}
		if head.Kind == "" {
			if strings.Trim(withoutComments(doc), " \n") != "" {
				return nil, errors.New("no object: " + doc)
			}
			continue
		}
		j, err := yaml.YAMLToJSONStrict([]byte(doc))
		if err != nil {
			return nil, err
		}
		o, pod := empty(head.APIVersion, head.Kind)
		if o == nil {
			return nil, errors.New("unknown type " + head.APIVersion + " " + head.Kind)
		}
		strict, err := kjson.UnmarshalStrict(j, o)
		if err := errors.Join(append(strict, err)...); err != nil {
			return nil, errors.New(head.Kind + ": " + err.Error())
		}
		all = append(all, object{head.Kind, o, pod, o})
	}
	return all, nil
}

func withoutComments(doc string) string {
	var b strings.Builder
	for line := range strings.Lines(doc) {
		if !strings.HasPrefix(line, "#") {
			io.WriteString(&b, line)
		}
	}
	return b.String()
}

// render renders the chart and decodes it.
func render(t *testing.T, args ...string) []object {
	t.Helper()
	text, err := template(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	all, err := decode(text)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// find returns the one object of a type with a name.
func find[T any](t *testing.T, all []object, name string) T {
	t.Helper()
	for _, o := range all {
		if v, ok := o.value.(T); ok && o.GetName() == name {
			return v
		}
	}
	var none T
	t.Fatalf("no %T %s", none, name)
	return none
}

// TestDecodeIsStrict: the other tests rely on it.
func TestDecodeIsStrict(t *testing.T) {
	const head = "apiVersion: v1\nkind: Service\n"
	for name, doc := range map[string]string{
		"unknown field":  head + "spec:\n  clusterIp: None\n",
		"wrong type":     head + "spec:\n  ports: 1\n",
		"same key twice": head + "spec:\n  clusterIP: None\n  clusterIP: None\n",
		"unknown kind":   "apiVersion: v1\nkind: Servce\n",
		"no object":      "spec: {}\n",
	} {
		if _, err := decode(doc); err == nil {
			t.Errorf("%s is no error", name)
		}
	}
	if all, err := decode("---\n# comment\n---\n" + head); err != nil || len(all) != 1 {
		t.Errorf("%d objects, %v", len(all), err)
	}
}
