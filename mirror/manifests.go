package mirror

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/shoal-dev/shoal/swarm"
)

const (
	// resolveTimeout bounds the resolution of a tag by the cluster: its
	// tracker's wait for another node's question, and one of our own.
	resolveTimeout = 8 * time.Second
	// manifestTimeout bounds the way of a manifest here, from a peer or, when
	// that fails, from upstream.
	manifestTimeout = 20 * time.Second
)

// manifest answers for a manifest by tag or digest.
func (m *Mirror) manifest(w http.ResponseWriter, r *http.Request, p *pull) error {
	ctx := r.Context()
	desc, pm, err := m.target(ctx, p)
	if err != nil {
		return err
	}
	p.digest, p.offline = desc.Digest, pm.offline
	if p.method == http.MethodHead && !pm.offline {
		// Small and constant work: what is known need not be fetched.
		if pm.known.mediaType != "" {
			desc.MediaType, desc.Size = pm.known.mediaType, pm.known.size
		}
		if isManifestType(desc.MediaType) && desc.Size > 0 {
			p.size = desc.Size
			describe(w.Header(), desc.Digest, desc.MediaType, desc.Size)
			w.WriteHeader(http.StatusOK)
			return nil
		}
	}
	data, err := m.content(ctx, p, desc)
	if err != nil {
		return err
	}
	man, ok := parseManifest(data, desc.MediaType)
	if !ok {
		return &miss{reason: reasonNotManifest, message: "the content is not a manifest"}
	}
	m.catalog.learn(p.repo, desc.Digest, int64(len(data)), man)
	p.size = int64(len(data))
	m.patient(w)
	describe(w.Header(), desc.Digest, man.mediaType, p.size)
	if p.stale() {
		w.Header().Set("Warning", fmt.Sprintf(`299 - "%s does not answer: %s as of %s ago"`,
			p.repo.Registry, p.ref.tag, time.Since(p.last).Round(time.Second)))
	}
	if p.method == http.MethodGet {
		m.delivered.add(p.digest)
	}
	w.WriteHeader(http.StatusOK)
	if p.method == http.MethodHead {
		return nil
	}
	n, err := bytes.NewReader(data).WriteTo(w)
	if p.sent = n; err != nil {
		p.reason, p.err = reasonClient, err
	}
	return nil
}

// target finds what the request is for, and whether it may be served.
func (m *Mirror) target(ctx context.Context, p *pull) (swarm.Descriptor, permit, error) {
	q := p.question(p.ref)
	if p.ref.tag != "" {
		return m.resolve(ctx, p, q)
	}
	p.source = swarm.SourceLocal
	pm, err := m.authorise(ctx, q)
	desc := swarm.Descriptor{MediaType: pm.known.mediaType, Digest: p.ref.digest, Size: pm.known.size}
	if err == nil && !pm.offline && p.who.id == "" {
		m.share(ctx, q, desc)
	}
	return desc, pm, err
}

// resolve finds what a tag points to. Upstream is asked if the caller's right
// to pull from the repository has to be confirmed, or if nobody in the cluster
// knows the tag well enough; when it does not answer, the last known
// descriptor is served to those who may have it.
func (m *Mirror) resolve(ctx context.Context, p *pull, q question) (swarm.Descriptor, permit, error) {
	before, denial := m.standing(q)
	if before == denied {
		return swarm.Descriptor{}, permit{}, fmt.Errorf("resolve %s: %w", q, denial)
	}
	var asked bool
	upstream := func(ctx context.Context) (swarm.Descriptor, error) {
		d, err := m.oracle.ask(ctx, q)
		asked = err == nil
		return d, err
	}
	var pm permit
	if before != granted {
		desc, err := upstream(ctx)
		if err != nil {
			if err := m.withoutAnswer(before, denial, err); err != nil {
				return swarm.Descriptor{}, permit{}, err
			}
			if before == unknown && q.who.id != "" {
				return swarm.Descriptor{}, permit{}, err
			}
			// To a caller whom upstream let in some time ago, or to whom the
			// cluster's memory applies: that of what such callers were given.
			pm.offline = true
			err = fmt.Errorf("resolve %s: %w", q, swarm.ErrUnavailable)
		}
		upstream = func(context.Context) (swarm.Descriptor, error) { return desc, err }
	}
	bounded, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	desc, last, err := m.cfg.Swarm.Resolve(bounded, q.who.space+q.repo.String()+":"+q.ref.tag, upstream)
	p.last = last
	p.source = swarm.SourceLocal
	if asked {
		p.source = swarm.SourceOrigin
	}
	if err != nil {
		return swarm.Descriptor{}, permit{}, fmt.Errorf("resolve %s: %w", q, err)
	}
	if _, err := parseDigest(desc.Digest.String()); err != nil {
		return swarm.Descriptor{}, permit{}, referenceMiss(kindManifest, err)
	}
	if age := time.Since(last); p.stale() && age > m.cfg.OutageGrace {
		return swarm.Descriptor{}, permit{}, fmt.Errorf("resolve %s: the last answer is %s old: %w", q, age.Round(time.Second), swarm.ErrUnavailable)
	}
	pm.offline = pm.offline || p.stale()
	// Another node's answer counts: it comes from the same upstream.
	m.inherit(q, desc, last)
	pm.known, _ = m.catalog.get(q.repo, desc.Digest)
	return desc, pm, nil
}

// content brings the manifest's bytes here, verified.
func (m *Mirror) content(ctx context.Context, p *pull, desc swarm.Descriptor) ([]byte, error) {
	q := p.question(reference{digest: desc.Digest})
	origin := func(ctx context.Context) ([]byte, error) {
		_, data, err := q.who.up.Manifest(ctx, q.repo, q.ref.String())
		// No size: the bytes are not verified yet.
		m.heard(q, swarm.Descriptor{Digest: desc.Digest}, err)
		if err != nil {
			return nil, fmt.Errorf("get %s: %w", q, err)
		}
		return data, nil
	}
	bounded, cancel := context.WithTimeout(ctx, manifestTimeout)
	defer cancel()
	data, source, err := m.cfg.Swarm.Small(bounded, desc.Digest, maxManifest, origin)
	if err != nil {
		return nil, err
	}
	// A tag that upstream was asked for stays a miss, wherever the rest is
	// from.
	if p.source != swarm.SourceOrigin {
		p.source = source
	}
	switch n := int64(len(data)); source {
	case swarm.SourceOrigin:
		p.stats.Origin = n
	case swarm.SourcePeers:
		p.stats.Peers = n
	default:
		p.stats.Local = n
	}
	return data, nil
}
