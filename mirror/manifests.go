package mirror

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/shoal-dev/shoal/mirror/upstream"
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
	data, err := m.content(ctx, p, desc, pm)
	if err != nil {
		return err
	}
	man, ok := parseManifest(data, desc.MediaType)
	if !ok {
		return &miss{reason: reasonNotManifest, message: "the content is not a manifest"}
	}
	m.catalog.learn(p.repo, desc.Digest, int64(len(data)), man, !pm.offline || pm.known.confirmed)
	p.size = int64(len(data))
	m.patient(w)
	describe(w.Header(), desc.Digest, man.mediaType, p.size)
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
	q := question{repo: p.repo, kind: kindManifest, ref: p.ref}
	if p.ref.tag != "" {
		return m.resolve(ctx, p, q)
	}
	p.source = swarm.SourceLocal
	pm, err := m.authorise(ctx, q)
	return swarm.Descriptor{Digest: p.ref.digest, Size: pm.known.size}, pm, err
}

// resolve finds what a tag points to. Upstream is asked if this node's right
// to pull from the repository has to be confirmed, or if nobody in the cluster
// knows the tag well enough; when it does not answer, the last known
// descriptor is served.
func (m *Mirror) resolve(ctx context.Context, p *pull, q question) (swarm.Descriptor, permit, error) {
	before := m.grants.standing(q.repo, time.Now())
	if before == denied {
		return swarm.Descriptor{}, permit{}, fmt.Errorf("resolve %s: %w", q, upstream.ErrDenied)
	}
	var asked bool
	upstream := func(ctx context.Context) (swarm.Descriptor, error) {
		d, err := m.oracle.ask(ctx, q)
		asked = err == nil
		return d, err
	}
	pm := permit{origin: true}
	if before != granted {
		desc, err := upstream(ctx)
		if err != nil {
			if pm, err = m.withoutAnswer(before, entry{}, err); err != nil {
				return swarm.Descriptor{}, permit{}, err
			}
			err = fmt.Errorf("resolve %s: %w", q, swarm.ErrUnavailable)
		}
		upstream = func(context.Context) (swarm.Descriptor, error) { return desc, err }
	}
	bounded, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	desc, stale, err := m.cfg.Swarm.Resolve(bounded, q.repo.String()+":"+q.ref.tag, upstream)
	p.stale = stale
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
	if stale {
		pm.offline = true
	}
	if !pm.offline {
		// Another node's answer counts: it comes from the same upstream, and
		// this node is let into the repository.
		m.catalog.add(q.repo, desc.Digest, entry{size: desc.Size, confirmed: true})
	}
	pm.known, _ = m.catalog.get(q.repo, desc.Digest)
	if pm.offline {
		pm.origin = mayAsk(before, pm.known)
	}
	return desc, pm, nil
}

// content brings the manifest's bytes here, verified.
func (m *Mirror) content(ctx context.Context, p *pull, desc swarm.Descriptor, pm permit) ([]byte, error) {
	var origin func(context.Context) ([]byte, error)
	if pm.origin {
		q := question{repo: p.repo, kind: kindManifest, ref: reference{digest: desc.Digest}}
		origin = func(ctx context.Context) ([]byte, error) {
			_, data, err := m.cfg.Upstream.Manifest(ctx, q.repo, q.ref.String())
			// No size: the bytes are not verified yet.
			m.heard(q, swarm.Descriptor{Digest: desc.Digest}, err)
			if err != nil {
				return nil, fmt.Errorf("get %s: %w", q, err)
			}
			return data, nil
		}
	}
	bounded, cancel := context.WithTimeout(ctx, manifestTimeout)
	defer cancel()
	data, source, err := m.cfg.Swarm.Small(bounded, desc.Digest, maxManifest, origin)
	if err != nil {
		return nil, pm.explain(err)
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
