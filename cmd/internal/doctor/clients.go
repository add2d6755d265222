package doctor

import "fmt"

// defaultSocket is where clients look for containerd.
const defaultSocket = "/run/containerd/containerd.sock"

// hintClients says how clients other than the kubelet get to the mirror: they do not
// go by containerd's configuration.
func hintClients(e *Env) []Finding {
	address := ""
	if e.Socket != "" && "unix://"+defaultSocket != e.Socket && e.Socket != defaultSocket {
		address = " --address " + e.Socket
	}
	return []Finding{{
		ID: "other-clients", Severity: Note, Title: "ctr and nerdctl have to be told to ask the mirror",
		Consequence: "without these flags they ask the registries, as if Shoal were not there; pulls of the kubelet and crictl need none",
		Fix: fmt.Sprintf("ctr%s --namespace k8s.io images pull --hosts-dir %s IMAGE\nnerdctl%s --namespace k8s.io --hosts-dir %s pull IMAGE",
			address, e.HostsDir, address, e.HostsDir),
	}}
}
