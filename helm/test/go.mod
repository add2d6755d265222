module github.com/shoal-dev/shoal/helm/test

go 1.26.3

require (
	github.com/cert-manager/cert-manager v1.21.2 // indirect
	github.com/google/go-cmp v0.7.0 // indirect
	github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring v0.95.1 // indirect
	gopkg.in/yaml.v3 v3.0.1 // indirect
	k8s.io/api v0.37.2 // indirect
	k8s.io/autoscaler/vertical-pod-autoscaler v1.8.1 // indirect
)
