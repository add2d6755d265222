package members

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// wantContacts is how many seeds a round contacts successfully. Each is a
	// full exchange of state, so few; three random ones connect any number of
	// nodes starting at once with near certainty.
	wantContacts = 3
	// maxAttempts is how many seeds a round tries at most: a name may list a
	// thousand addresses, many of them stale.
	maxAttempts = 12
	// parallel attempts, so that a dead seed does not hold up a live one.
	parallel = 4
)

// pace is the timing of rounds. Zero fields mean the defaults below.
type pace struct {
	// alone is the pause after the first round without company; it doubles up
	// to aloneMax.
	alone, aloneMax time.Duration
	// company is the pause after the first round with company; it doubles up
	// to companyMax.
	company, companyMax time.Duration
}

func (p pace) withDefaults() pace {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&p.alone, 500*time.Millisecond)
	// A node alone serves nobody and nobody serves it; a connection attempt
	// every few seconds costs nothing.
	def(&p.aloneMax, 10*time.Second)
	// Soon after a start others may still be islands; later a minute is
	// enough to heal a split.
	def(&p.company, 5*time.Second)
	def(&p.companyMax, time.Minute)
	return p
}

// delay is the pause after the given round (counted from 0 since the node
// became, or ceased to be, alone). random in [0, 1) spreads nodes that started
// together over half of it.
func (p pace) delay(alone bool, round int, random float64) time.Duration {
	d, limit := p.company, p.companyMax
	if alone {
		d, limit = p.alone, p.aloneMax
	}
	for range round {
		if d >= limit {
			break
		}
		d *= 2
	}
	d = min(d, limit)
	return d*3/4 + time.Duration(random*float64(d/2))
}

// seek runs rounds until ctx ends.
func (m *Members) seek(ctx context.Context) {
	if len(m.seeds) == 0 {
		m.log.Info().Msg("no seeds to join; waiting to be joined")
		<-ctx.Done()
		return
	}
	for round, was := 0, true; ; round++ {
		err := m.contact(ctx)
		if ctx.Err() != nil {
			return
		}
		alone := m.roster.alone()
		m.report(alone, was, round, err)
		if alone != was {
			round, was = 0, alone
		}
		if !m.pause(ctx, alone, m.pace.delay(alone, round, rand.Float64())) {
			return
		}
	}
}

// report logs what a round changed; a lasting state is said once.
func (m *Members) report(alone, was bool, round int, err error) {
	switch {
	case was && !alone:
		m.log.Info().Int("members", len(m.roster.members())).Msg("joined the cluster")
	case !was && alone:
		m.log.Warn().Err(err).Msg("lost all other members; trying to rejoin")
	case alone && round == 0:
		m.log.Warn().Err(err).Msg("no other member yet; trying again")
	case err != nil:
		m.log.Debug().Err(err).Bool("alone", alone).Msg("some seeds could not be contacted")
	}
}

// pause waits for d, less if the node becomes alone meanwhile. It reports
// whether to go on.
func (m *Members) pause(ctx context.Context, alone bool, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		changed := m.roster.wait()
		if !alone && m.roster.alone() {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-t.C:
			return true
		case <-changed:
		}
	}
}

// contact does one round: it exchanges state with some of the seeds that are
// not members yet. The error tells of what failed, also when something
// succeeded.
func (m *Members) contact(ctx context.Context) error {
	addrs, err := m.candidates(ctx)
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	addrs = addrs[:min(len(addrs), maxAttempts)]

	var (
		g    errgroup.Group
		made atomic.Int32
		errs = make([]error, len(addrs))
	)
	g.SetLimit(parallel)
	for i, addr := range addrs {
		g.Go(func() error {
			if made.Load() >= wantContacts || ctx.Err() != nil {
				return nil
			}
			// An address needs no lookup, so the library does none.
			if _, err := m.list.Join([]string{addr.String()}); err != nil {
				m.metrics.joins.WithLabelValues("error").Inc()
				errs[i] = fmt.Errorf("join %s: %w", addr, err)
				return nil
			}
			m.metrics.joins.WithLabelValues("ok").Inc()
			made.Add(1)
			return nil
		})
	}
	_ = g.Wait() // no function fails; errors are collected
	return errors.Join(append(errs, err)...)
}

// candidates resolves the seeds and leaves out this node and the members it
// knows.
func (m *Members) candidates(ctx context.Context) ([]netip.AddrPort, error) {
	var (
		addrs []netip.AddrPort
		errs  []error
		known = m.roster.contacts()
	)
	for _, s := range m.seeds {
		ips, err := resolve(ctx, m.resolver, s.host)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, ip := range ips {
			a := netip.AddrPortFrom(ip, s.port)
			if reachable(ip) && !known[a] {
				known[a] = true
				addrs = append(addrs, a)
			}
		}
	}
	return addrs, errors.Join(errs...)
}
