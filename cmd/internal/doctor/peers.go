package doctor

import (
	"context"
	"crypto/tls"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
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
	unreachable, refused := reach(ctx, e, creds, addresses)
	if len(unreachable) > 0 {
		all = append(all, Finding{
			ID: "peer-unreachable", Severity: Error, Title: fmt.Sprintf("ports of %d nodes cannot be reached", len(unreachable)),
			Evidence:    unreachable,
			Consequence: "this node and those do not trade: each fetches a copy of its own",
			Fix: fmt.Sprintf("open TCP %s, %s and %s and UDP %s between nodes: network policies, security groups, firewalls",
				e.ControlPort, e.WirePort, e.GossipPort, e.GossipPort),
		})
	}
	if len(refused) > 0 {
		all = append(all, Finding{
			ID: "peer-refuses", Severity: Error, Title: fmt.Sprintf("%d nodes and this one do not accept each other", len(refused)),
			Evidence:    refused,
			Consequence: "they are strangers: nothing is shared with them",
			Fix:         "compare cluster id, authority (ca.crt) and clock of both",
		})
	}
	if s.err == nil && s.metrics["shoal_members"] == 1 && len(addresses) > 0 && len(unreachable)+len(refused) == 0 {
		all = append(all, Finding{
			ID: "alone", Severity: Warning, Title: "this node sees no other",
			Evidence:    []string{fmt.Sprintf("shoal_members is 1, and %d other addresses can be joined", len(addresses))},
			Consequence: "everything comes from the registries",
			Fix:         "is UDP " + e.GossipPort + " open between nodes? Do all have the same --cluster and gossip.key? The log of 'shoal serve' tells of attempts",
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

// reach tries the ports of other nodes, and to be accepted by them.
func reach(ctx context.Context, e *Env, creds *peertls.Credentials, addresses []string) (unreachable, refused []string) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, a := range addresses {
		wg.Go(func() {
			for _, port := range []string{e.ControlPort, e.WirePort, e.GossipPort} {
				at := net.JoinHostPort(a, port)
				conn, err := (&net.Dialer{Timeout: farTimeout}).DialContext(ctx, "tcp", at)
				if err != nil {
					mu.Lock()
					unreachable = append(unreachable, err.Error())
					mu.Unlock()
					continue
				}
				if port == e.ControlPort && creds != nil {
					if err := handshake(ctx, creds, conn); err != nil {
						mu.Lock()
						refused = append(refused, at+": "+err.Error())
						mu.Unlock()
					}
				}
				_ = conn.Close() // nothing was sent that matters
			}
		})
	}
	wg.Wait()
	slices.Sort(unreachable)
	slices.Sort(refused)
	return unreachable, refused
}

// handshake proves both sides to each other. The server's verdict on this node
// comes after the client's handshake has ended, with the first read.
func handshake(ctx context.Context, creds *peertls.Credentials, conn net.Conn) error {
	c := tls.Client(conn, creds.ClientConfig("http/1.1"))
	ctx, cancel := context.WithTimeout(ctx, farTimeout)
	defer cancel()
	if err := c.HandshakeContext(ctx); err != nil {
		return err
	}
	if err := c.SetDeadline(time.Now().Add(farTimeout)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("HEAD / HTTP/1.1\r\nHost: peer\r\nConnection: close\r\n\r\n")); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 1))
	return err
}
