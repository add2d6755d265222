// Command coredns is CoreDNS with the plugins that resolve the names of a
// Kubernetes cluster. The stock command has those of five clouds too, which take
// longer to compile than Kubernetes.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/kubernetes"
)

func main() {
	dnsserver.Directives = []string{"errors", "hosts", "kubernetes"}
	coremain.Run()
}
