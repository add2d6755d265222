package doctor

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"github.com/shoal-dev/shoal/swarm/peertls"
)

const (
	// maxPeers are tried: enough to tell a rule from an exception.
	maxPeers = 16
	// expiresSoon is when a certificate is worth a warning.
	expiresSoon = 7 * 24 * time.Hour
	// maxSkew between clocks that nobody need care about.
	maxSkew = 30.0
)

// checkPeers looks whether this node and others come together.
func checkPeers(ctx context.Context, e *Env, s shoal) []Finding {
	creds, all := checkCertificates(e)
	if s.err == nil {
		if skew := s.metrics["shoal_peer_clock_skew_seconds"]; math.Abs(skew) > maxSkew {
			all = append(all, Finding{
				ID: "clock-skew", Severity: Warning, Title: "another node's clock differs from this one's",
				Evidence:    []string{fmt.Sprintf("by %.0f s", skew)},
				Consequence: "certificates and tokens of registries go by the clock, and may be refused",
				Fix:         "compare with 'shoal doctor' on other nodes; mend the time synchronisation of the one that differs from all",
			})
		}
	}
	addresses, errs := resolve(ctx, e)
	if len(errs) > 0 {
		all = append(all, Finding{
			ID: "join-unresolved", Severity: Warning, Title: "addresses to join cannot be resolved", Evidence: errs,
			Consequence: "after a restart this node may not find the others",
			Fix:         "does the cluster's DNS answer from here? In Kubernetes: 'kubectl get endpointslices' of the headless service",
		})
	}
	peers := reach(ctx, e, creds, addresses)
	all = append(all, judgePeers(e, peers)...)
	if s.err == nil && s.metrics["shoal_members"] == 1 && len(addresses) > 0 && !slices.ContainsFunc(peers, func(p peer) bool { return p.state != fine }) {
		all = append(all, Finding{
			ID: "alone", Severity: Warning, Title: "this node sees no other",
			Evidence:    []string{fmt.Sprintf("shoal_members is 1, and %d other addresses can be joined", len(addresses))},
			Consequence: "everything comes from the registries",
			Fix:         "all of them answer, so wait a minute if it has just been started; then see what the log of 'shoal serve' tells of attempts to join",
		})
	}
	return all
}

// checkCertificates returns nil credentials if there are none.
func checkCertificates(e *Env) (*peertls.Credentials, []Finding) {
	if e.CertsDir == "" {
		return nil, nil
	}
	c, err := peertls.Load(peertls.Config{Dir: e.CertsDir, Cluster: e.Cluster, Log: zerolog.Nop()})
	if err != nil {
		return nil, []Finding{{
			ID: "certificate", Severity: Error, Title: "this node's credentials cannot be used",
			Evidence:    []string{err.Error()},
			Consequence: "'shoal serve' does not start with them, or goes on with older ones until those end",
			Fix:         "renew them: 'shoal certs node', or the secret that they come from",
		}}
	}
	if left := time.Until(c.Expiry()); left < expiresSoon {
		return c, []Finding{{
			ID: "certificate-expiring", Severity: Warning, Title: "this node's certificate ends soon",
			Evidence:    []string{fmt.Sprintf("on %s, in %s", c.Expiry().Format(time.RFC3339), left.Round(time.Hour))},
			Consequence: "afterwards this node and the others are strangers",
			Fix:         "renew it: 'shoal certs node', 'helm upgrade', or the secret that it comes from. No restart is needed",
		}}
	}
	return c, nil
}

// resolve finds the addresses of other nodes.
func resolve(ctx context.Context, e *Env) (addresses, errs []string) {
	ctx, cancel := context.WithTimeout(ctx, farTimeout)
	defer cancel()
	for _, join := range e.Join {
		host, _, err := net.SplitHostPort(join)
		if err != nil {
			host = join
		}
		found, err := net.DefaultResolver.LookupHost(ctx, host)
		if err != nil {
			errs = append(errs, err.Error())
		}
		addresses = append(addresses, found...)
	}
	slices.Sort(addresses)
	addresses = slices.DeleteFunc(slices.Compact(addresses), func(a string) bool { return a == e.Advertise })
	rand.Shuffle(len(addresses), func(i, j int) { addresses[i], addresses[j] = addresses[j], addresses[i] })
	return addresses[:min(len(addresses), maxPeers)], errs
}
